"""GraNet: gradual pruning, and a part of what is left is exchanged at each prune."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
from pydantic import model_validator
from torch import Tensor

from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.joint import joint_counts
from dynsparse.masks.selection import Cut, cuts_smallest
from dynsparse.methods.base import LayerChange, SomeShare, in_parts
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import Dynamic, DynamicSettings, refuse_draws_between_layers
from dynsparse.methods.exploration import Counts
from dynsparse.schedules import AnyDensity, CubicDensity, Period, StepTable, cosine


class GranetSettings(DynamicSettings):
    """GraNet (Liu et al. 2021): gradual pruning by one threshold, with neuroregeneration in each layer."""

    name: Literal["granet"]
    period: Period = StepTable(((0, 1000),))
    """Steps between prunes, by epoch."""
    fraction: SomeShare = 0.5
    """Fraction of each layer's units left after a prune that is exchanged at the start; it falls along a cosine."""
    density: AnyDensity = CubicDensity(name="cubic", start=0.5, end=0.6875)
    """Course of the density; a `start` of 0 is the paper's dense-to-sparse, 0.5 its sparse-to-sparse. It ends as in the
    authors' code for CIFAR, after 110 of 160 epochs; on ImageNet they end it after 30 of 100."""

    @model_validator(mode="after")
    def _draws_within_layers(self) -> GranetSettings:
        refuse_draws_between_layers(self, "soft_drop")
        return self

    def build(self) -> Granet:
        return Granet(self)


class Granet(Dynamic):
    """Liu et al., "Sparse training via boosting pruning plasticity with neuroregeneration", NeurIPS 2021.

    Each event prunes the smallest |weights| of all layers to the density of the moment, by one threshold. Then each
    layer drops a fraction of what it has left, again by magnitude, and grows as many by the largest |gradient|
    (section 4). The fraction falls along a cosine over the whole run. Exchanges go on after the last prune.

    Departures: what was pruned in an event does not grow in the same event. The fraction ends at 0, in the authors'
    code at 0.005. They exchange all weights by ceil, here by round.
    """

    settings: GranetSettings

    def prepare(self, masks: MaskSet) -> None:
        self.masks = masks
        self._regrown: list[int] = []

    @property
    def trades(self) -> bool:
        return True

    def moved_share(self, clock: Clock) -> float:
        return cosine(self.settings.fraction, 0, clock.progress)

    def grown_units(self, now: Counts, after: Counts, clock: Clock) -> Counts:
        return np.asarray(np.rint(self.moved_share(clock) * after) if self.moves(clock) else 0 * after)

    @in_parts
    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        pruned = self._pruned(scores, clock)
        fraction = Fraction(str(self.moved_share(clock)))
        left = [layer.numel() - count for layer, count in zip(scores, pruned, strict=True)]
        room = [layer.spec.units - layer.active_units for layer in self.masks]
        self._regrown = [min(round(fraction * count), free) for count, free in zip(left, room, strict=True)]
        return cuts_smallest(scores, [a + b for a, b in zip(pruned, self._regrown, strict=True)])

    @in_parts
    def _pruned(self, scores: Sequence[Tensor], clock: Clock) -> list[int]:
        """Units of each layer that fall to the threshold over all layers."""
        layers = list(self.masks)
        sizes = [layer.spec.unit_size for layer in layers]
        moves = [layer.name not in self.resting for layer in layers]
        now = sum(layer.active_weights for layer, one in zip(layers, moves, strict=True) if one)
        excess = now - self.moving_budget(self.masks, clock)
        most = [(layer.active_units - 1) * one for layer, one in zip(layers, moves, strict=True)]
        return joint_counts(scores, sizes, max(0, excess), [0] * len(layers), most)

    def shares(self, layers: Sequence[LayerChange]) -> Sequence[float | Fraction]:
        regrown = self._regrown or [0] * len(layers)  # Where the density alone changes, nobody asks for cuts.
        return [Fraction(count * layer.unit_size) for count, layer in zip(regrown, layers, strict=True)]

    def after(self, layers: Sequence[LayerChange]) -> None:
        """Forget what each layer grows in this event."""
        self._regrown = []

    @in_parts
    def grow_scores(self, layer: SparseLayer) -> Tensor:
        assert layer.weight.grad is not None  # Layers without one rest (`grows_by_gradient`).
        return layer.unit_means(layer.weight.grad.abs())
