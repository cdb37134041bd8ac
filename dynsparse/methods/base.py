"""The contract of a method: the rule that decides what to drop, how to share the budget, what to grow.

A method is pure functions of tensors. It knows no ranks, files, clocks or
processes: `Reallocator` calls it, makes its decisions exact, sends them to all
ranks and applies them. Everything here has a default but `drop_cuts`; a
subclass states only what sets it apart. `Dynamic` adds what most methods share:
a period, an end, and what new weights begin with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from dynsparse.masks import LayerSpec, MaskSet, SparseLayer
from dynsparse.masks.initial import initial_weights
from dynsparse.masks.selection import Cut
from dynsparse.schedules import Period, StepTable
from dynsparse.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Clock:
    """Where training stands, after an optimizer step."""

    step: int
    """Optimizer steps done, over the whole run."""
    epoch: int
    """Counted from 0."""
    steps_per_epoch: int = 1
    epochs: int = 1
    """Of the whole run."""

    @property
    def ends_epoch(self) -> bool:
        """Whether this step was the last of its epoch."""
        return self.step == (self.epoch + 1) * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1."""
        return min(1.0, self.step / (self.epochs * self.steps_per_epoch))


@dataclass(frozen=True)
class LayerChange:
    """What one reallocation does to one layer, in units of `unit_size` weights."""

    name: str
    units: int
    unit_size: int
    active: int
    """Active units before."""
    dropped: int
    grown: int = 0

    @property
    def kept(self) -> int:
        return self.active - self.dropped

    @property
    def room(self) -> int:
        """Units that can grow: those free before, as none returns in the event that dropped it."""
        return self.units - self.active


class MethodSettings(Settings):
    """Base of each method's settings; `name` selects the method in a config."""

    name: str

    def build(self) -> Method:
        raise NotImplementedError

    @property
    def starts(self) -> Literal["sparse", "dense", "tied"]:
        """What the network is at the start; only a sparse one is as `sparsity` says."""
        return "sparse"


class Method:
    """Base of all methods. Instances hold only state that is the same on every rank."""

    #: Whether there is an event after every step: then only every `log.every_steps`-th is reported.
    every_step = False

    def check(self, layers: Sequence[LayerSpec]) -> None:
        """Raise UserError if the settings cannot work on these layers. Before anything is built."""

    def prepare(self, masks: MaskSet) -> None:
        """Learn the layers, before the first step."""

    def wants_whole_gradients(self, clock: Clock) -> bool:
        """Whether the gradients of the step that ends at `clock` matter outside the masks too.

        On other steps they may be 0 there: only the active ones need travel between ranks. Default: at every step for
        a method that observes them, at a step before a reallocation for one that scores growth.
        """
        return self._observes or (self._scores_growth and self.is_due(clock))

    @property
    def grows_by_gradient(self) -> bool:
        """Whether `grow_scores` reads the gradients of the very step: one that observes has a record of its own."""
        return self._scores_growth and not self._observes

    @property
    def _observes(self) -> bool:
        return type(self).observe is not Method.observe

    @property
    def _scores_growth(self) -> bool:
        return type(self).grow_scores is not Method.grow_scores

    def observe(self, masks: MaskSet) -> None:
        """Look at the gradients, after every backward and before they are masked (`wants_whole_gradients`)."""

    def after_step(self, masks: MaskSet, clock: Clock, seed: int) -> None:
        """Change active weights after every optimizer step. `seed` is the run's."""

    def is_due(self, clock: Clock) -> bool:
        """Whether to reallocate after this step. Default: never."""
        return False

    def is_settled(self, clock: Clock) -> bool:
        """Whether the budget is what it is to be in the end: only such epochs can be a run's best. Default: always."""
        return True

    def drop_scores(self, layer: SparseLayer) -> Tensor:
        """float [active units]: the lowest go first. Default: mean |w| over each unit."""
        values = layer.gather(layer.weight).abs_()
        return values.view(-1) if layer.spec.unit_size == 1 else values.mean(1)

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        """What to drop in each layer, given its `drop_scores`.

        `Reallocator` lowers a cut that would empty a layer, or drop more than can be grown.
        """
        raise NotImplementedError

    def budget(self, budget: int, clock: Clock) -> int:
        """Active weights after this reallocation. Default: as many as before."""
        return budget

    def shares(self, layers: Sequence[LayerChange]) -> Sequence[float | Fraction]:
        """In what proportions the layers share the freed weights. Default: each gets back what it lost.

        Any scale; `Reallocator` makes whole units of it that sum to the budget exactly.
        """
        return [Fraction(layer.dropped * layer.unit_size) for layer in layers]

    def grow_scores(self, layer: SparseLayer) -> Tensor | None:
        """float [units]: the highest free ones grow. None (the default): at random, uniformly.

        Called after backward, before gradients are masked, on steps that end in a reallocation.
        """
        return None

    def begin(self, layer: SparseLayer, units: Tensor, generator: torch.Generator) -> Tensor | None:
        """Weights [k, unit size] that the units just grown (int64 [k]) begin with. None (the default): 0.

        `generator` is on the CPU and the same on every rank.
        """
        return None

    def after(self, layers: Sequence[LayerChange]) -> None:
        """Adapt own state to what a reallocation did. Runs on every rank with the same argument."""

    def scalars(self) -> Mapping[str, float]:
        """Numbers to log with each reallocation, such as a threshold."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; the masks given to `prepare` have been restored before."""
        assert not state, f"{type(self).__name__} keeps no state, yet {sorted(state)} was saved"


class DynamicSettings(MethodSettings):
    """Base of the settings of methods that move weights while training."""

    period: Period = StepTable(((0, 1000),))
    """Steps between reallocations, by epoch."""
    stop_epoch: Annotated[int, Field(ge=0)] = 1000
    """Reallocate only before this epoch."""
    new_weights: Literal["zero", "initial"] = "zero"
    """What grown weights begin with: 0, or a draw from the initial distribution (paper's `--big-new-weights`)."""


class Dynamic(Method):
    """Base of methods that move weights while training."""

    settings: DynamicSettings

    def __init__(self, settings: DynamicSettings) -> None:
        self.settings = settings

    def is_due(self, clock: Clock) -> bool:
        return clock.epoch < self.settings.stop_epoch and clock.step % int(self.settings.period.at(clock.epoch)) == 0

    def begin(self, layer: SparseLayer, units: Tensor, generator: torch.Generator) -> Tensor | None:
        if self.settings.new_weights == "zero":
            return None
        return initial_weights(layer.spec, units.numel(), generator)
