"""Sparse momentum: layers and positions compete by the momentum of their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.selection import Cut, cuts_fraction
from dynsparse.methods.base import LayerChange, SomeShare
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import Dynamic, DynamicSettings
from dynsparse.schedules import Period, cosine


class SparseMomentumSettings(DynamicSettings):
    """Sparse momentum (Dettmers & Zettlemoyer 2019): layers share by mean |momentum|, the largest |momentum| grow."""

    name: Literal["sparse_momentum"]
    period: Period | None = None  # type: ignore[assignment]
    """Steps between reallocations, by epoch; null: at the end of every epoch."""
    fraction: SomeShare = 0.5
    """Fraction of each layer's active units to move at the start. It falls to 0 along a cosine."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the running sum of gradients, which ranks layers and positions."""

    def build(self) -> SparseMomentum:
        return SparseMomentum(self)


class SparseMomentum(Dynamic):
    """Dettmers & Zettlemoyer, "Sparse networks from scratch: faster training without losing performance", 2019.

    Each layer drops a fraction of its smallest |weights|. Layers share the freed weights in proportion to the mean
    |momentum| of their active weights, and grow where |momentum| is largest.

    Departures: the momentum is this method's own, m = momentum m + gradient over all positions, as the optimizer's is
    0 outside the masks. It contains no weight decay, and under AdamW no division by the second moment. It takes 4 bytes
    a weight, inactive ones included, in memory and in checkpoints. The fraction ends at 0, in the authors' code at
    0.005. Layers with less than 20 % zeros drop as much as others; the authors let some of them drop less.
    """

    settings: SparseMomentumSettings

    @property
    def trades(self) -> bool:
        return True

    def prepare(self, masks: MaskSet) -> None:
        self.masks = masks
        self.momentum = {layer.name: torch.zeros_like(layer.weight) for layer in masks}

    @property
    def gain(self) -> float:
        return 1 / (1 - self.settings.momentum)

    @property
    def counts_epochs(self) -> bool:
        return self.settings.period is None or super().counts_epochs

    @property
    def grows_by_gradient(self) -> bool:
        """Whether growth scores are of the very step's gradients: no, of the momentum, which has that step in it."""
        return False

    @torch.no_grad()
    def observe(self, layer: SparseLayer, gradient: Tensor) -> None:
        self.momentum[layer.name].mul_(self.settings.momentum).add_(gradient)

    def learnt(self, layer: SparseLayer) -> Sequence[Tensor]:
        return [self.momentum[layer.name]]

    def _is_period(self, clock: Clock) -> bool:
        return clock.ends_epoch if self.settings.period is None else super()._is_period(clock)

    def _period(self, clock: Clock) -> int:
        return clock.steps_per_epoch if self.settings.period is None else super()._period(clock)

    def _longest_period(self, clock: Clock) -> int:
        return clock.steps_per_epoch if self.settings.period is None else super()._longest_period(clock)

    def moved_share(self, clock: Clock) -> float:
        return cosine(self.settings.fraction, 0, clock.progress)

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        return cuts_fraction(scores, self.moved_share(clock))

    def shares(self, layers: Sequence[LayerChange]) -> Sequence[float]:
        means = [layer.gather(self.momentum[layer.name]).abs().mean() for layer in self.masks]
        finite = torch.stack(means).nan_to_num(0, 0, 0)
        return list(finite.tolist())

    def grow_scores(self, layer: SparseLayer) -> Tensor:
        return layer.unit_means(self.momentum[layer.name].abs())

    def state_dict(self) -> dict[str, Any]:
        return {"momentum": {name: value.cpu().clone() for name, value in self.momentum.items()}}

    def check_state(self, state: Mapping[str, Any], layers: Mapping[str, tuple[Sequence[int], int]]) -> None:
        for name, (shape, _) in layers.items():
            value = state["momentum"][name]
            if not isinstance(value, Tensor) or list(value.shape) != list(shape) or not value.is_floating_point():
                raise ValueError(f"momentum.{name} is not of its layer's shape")
        if strange := state["momentum"].keys() - layers.keys():
            raise ValueError(f"momentum.{min(strange)} is of no such layer")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state["momentum"].items():
            self.momentum[name].copy_(value)
