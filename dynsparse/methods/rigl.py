"""RigL: grow the weights with the largest gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from dynsparse.masks import SparseLayer
from dynsparse.masks.selection import Cut
from dynsparse.methods.base import SomeShare, in_parts
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import Scoped, ScopedSettings
from dynsparse.schedules import Period, StepTable, cosine


class RiglSettings(ScopedSettings):
    """RigL (Evci et al. 2020): drop a fraction of each layer, grow the largest gradients."""

    name: Literal["rigl"]
    period: Period = StepTable(((0, 100),))
    """Steps between reallocations, by epoch."""
    fraction: SomeShare = 0.3
    """Fraction of each layer's active units to move at the start. It falls to 0 along a cosine."""
    until: SomeShare = 0.75
    """Fraction of training in which weights move."""

    def build(self) -> Rigl:
        return Rigl(self)


class Rigl(Scoped):
    """Evci et al., "Rigging the lottery: making all tickets winners", ICML 2020, Algorithm 1.

    Each layer drops the fraction f/2 (1 + cos(pi t / T_end)) of its smallest |weights|, and grows as many where
    |gradient| is largest. The gradient is averaged over all workers before the magnitude is taken. A unit of several
    weights counts with their mean. With `sparsity.allocation: erk` it is the paper's RigL-ERK.
    With the scope `global` one threshold over all layers says what falls, and one what grows.

    Departures: a unit that is dropped in an event does not grow in the same event. The step with an event is made as
    well; in the paper the event takes its place. Uniform densities concern all sparse layers; the paper keeps the first
    layer dense then: exclude it.

    At 99 % neurons behind a norm may take all growth, as their gradients are divided by a standard deviation near 0
    (docs/results/rigl_neurons.md).
    """

    settings: RiglSettings

    @property
    def grows_globally(self) -> bool:
        return self.trades

    def moves(self, clock: Clock) -> bool:
        return clock.progress < self.settings.until and super().moves(clock)

    def moved_share(self, clock: Clock) -> float:
        return cosine(self.settings.fraction, 0, clock.progress / self.settings.until)

    @in_parts
    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        return self.cuts_of(scores, self.moved_share(clock))

    @in_parts
    def grow_scores(self, layer: SparseLayer) -> Tensor:
        assert layer.weight.grad is not None  # Layers without one rest (`grows_by_gradient`).
        return layer.unit_means(layer.weight.grad.abs())
