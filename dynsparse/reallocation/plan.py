"""The plan of one reallocation: a few numbers a layer, decided on rank 0 and sent to all ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.selection import Cut
from dynsparse.methods import LayerChange

COLUMNS = 6
"""Numbers in a row of an encoded plan: threshold, ties and count of two cuts."""


@dataclass(frozen=True)
class LayerPlan:
    """Decision for one layer."""

    drop: Cut
    """Cut over the drop scores of the active units."""
    grow: Cut
    """Cut over the negated growth scores of the free units. With random growth only its `count` holds.

    Of a layer with a structure the counts of both hold; their thresholds are the numbers of units that it was to drop,
    and to come to, which its groups may not allow.
    """


@dataclass(frozen=True)
class Plan:
    """Decision of rank 0 for one reallocation, in the order of the layers."""

    step: int
    seed: int
    budget: int
    """Active weights from now on."""
    layers: tuple[LayerPlan, ...]

    def encode(self) -> Tensor:
        """float64 [1 + layers, 6] on the CPU: exact for float32 thresholds and integers below 2^53.

        The first row holds step, seed (upper half, lower 32 bits) and budget.
        """
        seed = (float(self.seed >> 32), float(self.seed & 0xFFFFFFFF))
        rows = [[float(self.step), *seed, float(self.budget), 0.0, 0.0]]
        for layer in self.layers:
            rows.append([float(v) for cut in (layer.drop, layer.grow) for v in (cut.threshold, cut.ties, cut.count)])
        return torch.tensor(rows, dtype=torch.float64)

    @classmethod
    def decode(cls, encoded: Tensor) -> Plan:
        """Read what `encode` gave."""
        (step, high, low, budget, *_), *rows = encoded.tolist()
        layers = tuple(
            LayerPlan(Cut(row[0], int(row[1]), int(row[2])), Cut(row[3], int(row[4]), int(row[5]))) for row in rows
        )
        return cls(int(step), (int(high) << 32) | int(low), int(budget), layers)

    @staticmethod
    def blank(layers: int) -> Tensor:
        """Make a buffer for an encoded plan of so many layers, to receive it."""
        return torch.empty(1 + layers, COLUMNS, dtype=torch.float64)

    def changes(self, masks: MaskSet) -> list[LayerChange]:
        """List what the plan does to the layers as they are now, before it is applied."""
        return [
            change_of(layer, decided.drop.count, decided.grow.count)
            for layer, decided in zip(masks, self.layers, strict=True)
        ]


def change_of(layer: SparseLayer, dropped: int, grown: int = 0, closed: int = 0) -> LayerChange:
    """Describe the drop and growth of so many units of a layer, as methods read it. `closed`: may not grow."""
    return LayerChange(layer.name, layer.spec.units, layer.spec.unit_size, layer.active_units, dropped, grown, closed)
