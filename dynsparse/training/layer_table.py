"""The table of a network's layers: those that are sparse, what stays dense and why, and what it comes to in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dynsparse.flops import in_words
from dynsparse.masks import LayerSpec
from dynsparse.tables import align
from dynsparse.training.dense import DenseWeight


@dataclass(frozen=True)
class LayerTable:
    """Facts of a network's weights. It takes counts alone, so that a network without weights has one too."""

    layers: Sequence[tuple[LayerSpec, int]]
    """Each sparse or tied layer with its active weights."""
    dense: Sequence[DenseWeight]
    """Weights that stay dense, with the reasons."""
    asked: str
    """Words for the zeros that the config asks for in the sparse layers, at the end of the run."""
    total: int
    """Parameters of the model."""
    tied: bool = False
    """Whether weights share values instead of being masked."""
    flops: tuple[Mapping[str, int], int] | None = None
    """FLOPs of one image: of each masked layer, and of the whole model. None: no column of them."""

    @property
    def active(self) -> int:
        """Active weights of the sparse layers."""
        return sum(active for _, active in self.layers)

    @property
    def weights(self) -> int:
        """Weights of the sparse layers, active or not."""
        return sum(spec.weights for spec, _ in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in the sparse layers."""
        return 1 - self.active / self.weights if self.layers else 0.0

    @property
    def model_sparsity(self) -> float:
        """Fraction of zeros, or of weights saved by tying, in the whole model."""
        return (self.weights - self.active) / self.total

    def __str__(self) -> str:
        parts = [self._sparse(), self._dense() if self.dense else "", self.in_all()]
        return "\n\n".join(part for part in parts if part)

    def _sparse(self) -> str:
        """Rows with shape, unit, sparsity and active weights, and both totals."""
        flops, in_all = ({}, None) if self.flops is None else self.flops
        rows: list[tuple[str, ...]] = [("layer", "shape", "unit", "sparsity", "active", "weights", "FLOPs")]
        for spec, active in self.layers:
            unit = _times(spec.shape[spec.mask_dims :]) or "1"
            counts = _counts(active, spec.weights)
            rows.append((spec.name, _times(spec.shape), unit, *counts, in_words(flops.get(spec.name))))
        for name, active, weights, cost in (
            ("tied layers" if self.tied else "sparse layers", self.active, self.weights, sum(flops.values()) or None),
            ("whole model", self.total - self.weights + self.active, self.total, in_all),
        ):
            rows.append((name, "", "", *_counts(active, weights), in_words(cost)))
        return align(rows if self.flops is not None else [row[:-1] for row in rows])

    def _dense(self) -> str:
        width = max(len(one.reason) for one in self.dense)
        head = ("stays dense", "shape", "weights", "reason".ljust(width))
        rows = [(one.name, _times(one.shape), f"{one.weights:,}", one.reason.ljust(width)) for one in self.dense]
        return "\n".join(line.rstrip() for line in align([head, *rows]).splitlines())

    def in_all(self) -> str:
        """One line on the zeros asked for, those of the sparse layers, and those of all parameters."""
        layers = f"the {len(self.layers):,} sparse layers have" if len(self.layers) != 1 else "the sparse layer has"
        return (
            f"asked for {self.asked or 'no'} zeros: {layers} {100 * self.sparsity:.2f} %, all {self.total:,} "
            f"parameters together {100 * self.model_sparsity:.2f} %, for {self.total - self.weights:,} stay dense"
        )


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _counts(active: int, weights: int) -> tuple[str, str, str]:
    return f"{100 * (1 - active / max(weights, 1)):.2f} %", f"{active:,}", f"{weights:,}"
