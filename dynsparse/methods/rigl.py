"""RigL: grow the weights with the largest gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from dynsparse.masks import SparseLayer
from dynsparse.masks.selection import Cut, cuts_fraction
from dynsparse.methods.base import Dynamic, DynamicSettings, Share, SomeShare
from dynsparse.methods.clock import Clock
from dynsparse.schedules import Period, StepTable, cosine


class RiglSettings(DynamicSettings):
    """RigL (Evci et al. 2020): drop a fraction of each layer, grow the largest gradients."""

    name: Literal["rigl"]
    period: Period = StepTable(((0, 100),))
    """Steps between reallocations, by epoch."""
    fraction: SomeShare = 0.3
    """Fraction of each layer's active units to move at the start. It falls to 0 along a cosine."""
    until: Share = 0.75
    """Fraction of training in which weights move."""

    def build(self) -> Rigl:
        return Rigl(self)


class Rigl(Dynamic):
    """Evci et al., "Rigging the lottery: making all tickets winners", ICML 2020, Algorithm 1.

    Each layer drops the fraction f/2 (1 + cos(pi t / T_end)) of its smallest |weights|, and grows as many where
    |gradient| is largest. The gradient is averaged over all workers before the magnitude is taken. A unit of several
    weights counts with their mean. With `sparsity.allocation: erk` it is the paper's RigL-ERK.

    Departure: a unit that is dropped in an event does not grow in the same event.
    """

    settings: RiglSettings

    def is_due(self, clock: Clock) -> bool:
        return clock.progress < self.settings.until and super().is_due(clock)

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        return cuts_fraction(scores, cosine(self.settings.fraction, 0, clock.progress / self.settings.until))

    def grow_scores(self, layer: SparseLayer) -> Tensor:
        assert layer.weight.grad is not None  # Layers without one rest (`grows_by_gradient`).
        return layer.unit_means(layer.weight.grad.abs())
