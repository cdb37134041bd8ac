"""The contract of a method: the rule that decides what to drop, how to share the budget, what to grow.

A method is pure functions of tensors. It knows no ranks, files, clocks or processes: `Reallocator` calls it, makes its
decisions exact, sends them to all ranks and applies them. Everything here has a default but `drop_cuts`; a subclass
states only what sets it apart. `dynamic.Dynamic` adds a period, an end, a density schedule and the first values of new
weights, as most methods have them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, MaskSet, SparseLayer
from dynsparse.masks.allocation import allocated
from dynsparse.masks.channels import ChannelGroup
from dynsparse.masks.granularity import Kind
from dynsparse.masks.regrouping import Wish
from dynsparse.masks.reserve import Reserve
from dynsparse.masks.selection import Cut
from dynsparse.masks.tying import TiedLayer
from dynsparse.methods.clock import Clock, Schedule
from dynsparse.methods.exploration import Forecast
from pipelines.common.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]
SomeShare = Annotated[float, Field(gt=0, le=1)]
"""Fraction above 0: with 0 a method would move nothing, and nobody would notice."""


@dataclass(frozen=True)
class LayerChange:
    """Effect of one reallocation on one layer, in units of `unit_size` weights."""

    name: str
    units: int
    unit_size: int
    active: int
    """Active units before."""
    dropped: int
    grown: int = 0
    closed: int = 0
    """Inactive units that may not grow."""

    @property
    def kept(self) -> int:
        """Units that were active before and still are."""
        return self.active - self.dropped

    @property
    def room(self) -> int:
        """Units that can grow: those free before, as none returns in the event that dropped it, and not closed."""
        return self.units - self.active - self.closed


def by_kept(layers: Sequence[LayerChange]) -> Sequence[Fraction]:
    """Proportions of the weights that each layer keeps (paper: R_l)."""
    return [Fraction(layer.kept * layer.unit_size) for layer in layers]


@dataclass(frozen=True)
class Aim:
    """The sparsity that a run is to end with, and how it is shared out among layers."""

    sparsity: Mapping[Kind, float]
    allocation: str = "uniform"

    def units(self, layers: Sequence[LayerSpec], start: float | None = None) -> dict[str, int]:
        """Return the active units of each layer at the end, or with the sparsity `start` in place of the aim."""
        share = {kind: value if start is None or not value else start for kind, value in self.sparsity.items()}
        return allocated(self.allocation, layers, share)


class MethodSettings(Settings):
    """Base of each method's settings; `name` selects the method in a config."""

    name: str

    def build(self) -> Method:
        """Make the method of these settings."""
        raise NotImplementedError

    def aiming_at(self, sparsity: Mapping[Kind, float]) -> MethodSettings:
        """Return these settings, adapted to the sparsity asked for by kind. UserError if the two contradict."""
        return self

    def knowing(self, aim: Aim) -> MethodSettings:
        """Return these settings, knowing the sparsity that the run is to end with."""
        return self

    def first_sparsity(self, sparsity: Mapping[Kind, float]) -> Mapping[Kind, float]:
        """Fraction of zeros at the first step, given the config's `sparsity`, by kind of layer."""
        return sparsity

    def pattern(self, structure: str) -> str:
        """Pattern that the masks are to have, given the config's `sparsity.structure`. ValueError if it cannot be."""
        return structure

    @property
    def starts(self) -> Literal["sparse", "dense", "tied"]:
        """Kind of network to start from. Only a sparse one has the config's `sparsity` from the start."""
        return "sparse"

    @property
    def needs_weights(self) -> bool:
        """Whether the run must start from the weights of a trained dense network."""
        return False

    def require_epochs(self, epochs: int) -> None:
        """Raise ValueError for settings that a run of so many epochs would end before."""

    def with_limits(self, limits: Mapping[str, float]) -> MethodSettings:
        """These settings, with the most sparsity that the model advises for some layers unless they say it."""
        return self

    def final_sparsity(self, sparsity: Mapping[Kind, float]) -> Mapping[Kind, float]:
        """Fraction of zeros at the end of a run, given the config's `sparsity`, by kind of layer."""
        return sparsity

    def tie(self, model: nn.Module, spec: LayerSpec, values: int, *, seed: int) -> TiedLayer:
        """Let a layer's weights share so many values. Only where the network `starts` tied."""
        raise NotImplementedError(self.name)


F = TypeVar("F", bound=Callable[..., object])


def in_parts(function: F) -> F:
    """Mark a method's function as one that takes large layers in parts, so that memory does not grow with a layer.

    A part is a `SparseLayer` of some rows, which may have no active unit. Its scores must be those of the layer at
    these rows: they may depend on the weights and gradients of the part, not on the layer's name, shape or number.
    Scores that are given to `drop_cuts` may be `Parted`, which the functions of `masks.selection` and `masks.joint`
    take. An override, or what wraps a function, is not marked until it says so itself.
    """
    function.in_parts = function  # type: ignore[attr-defined]  # Itself: what wraps it may copy the mark.
    return function


class Method:
    """Base of all methods. Instances hold only state that is the same on every rank."""

    #: Whether there is an event after every step: then only every `log.every_steps`-th is reported.
    every_step = False
    #: Whether `drop_cuts` takes so many of the lowest scores, whatever they are: then they can be drawn softly.
    drops_by_count = True
    #: Expected share of weights that are ever active, once `plan` was called; None where nobody can tell.
    forecast: Forecast | None = None
    #: Powers of soft draws; 0: the lowest scores fall, the highest grow. See `masks.soft`.
    soft_drop = soft_growth = 0
    #: Names of the functions that see scores or make them, or say how they are read.
    sees_scores: tuple[str, ...] = ("drop_scores", "soft_drop_at", "drop_cuts", "grow_scores", "closed")
    #: Whether inactive weights keep values beside the masks: see `reserve`.
    keeps_reserve = False
    #: Those values, made by `prepare`. `Reallocator` lets the optimizers move them after each step.
    reserve: Reserve | None = None
    #: Names of the layers in which nothing moves in the event at hand. `Reallocator` sets them on every rank.
    resting: Collection[str] = ()
    #: Those of them that rest because no gradient reached them in this very step: they are not frozen.
    lacking: Collection[str] = ()
    #: Whether nothing is exchanged in the event at hand, whatever the rule: the density alone changes.
    at_rest = False

    @property
    def shrink_obstacle(self) -> str:
        """Words for why the method cannot go on with a network that has lost channels (`train.shrink`); empty: it can.

        Default: it can if it has no state of its own. One whose state has nothing of the layers' shapes says so here.
        """
        return "" if type(self).state_dict is Method.state_dict else "keeps state of the layers' shapes"

    def state_after_shrink(self, rows: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the state with which the method goes on when the network has lost channels (`train.shrink`).

        `rows`: the rows that each layer keeps, int64, rising; those of layers that keep all are absent. Default: the
        state as it is.
        """
        return self.state_dict()

    @property
    def trades(self) -> bool:
        """Whether layers exchange weights. Default: no, each keeps its number of active weights."""
        return False

    @property
    def grows_globally(self) -> bool:
        """Whether the growth scores of all layers compete, by one threshold, where the method `trades`. Default: no."""
        return False

    def least_units(self, spec: LayerSpec) -> int:
        """Fewest active units that a layer keeps where the method `trades`. Default: 1."""
        return 1

    def check(self, layers: Sequence[LayerSpec], active_units: Mapping[str, int]) -> None:
        """Raise UserError if the settings cannot work on these layers, given each one's active units at the start."""

    def plan(
        self, layers: Sequence[LayerSpec], active_units: Mapping[str, int], schedule: Schedule, start: int = 0
    ) -> None:
        """Learn the length of the run, which begins after the step `start`, before `prepare`.

        Raises UserError for settings that this run cannot meet.
        """

    def prepare(self, masks: MaskSet) -> None:
        """Learn the layers, before the first step."""

    def wants_whole_gradients(self, clock: Clock) -> bool:
        """Whether the method reads gradients outside the masks too in the step that ends at `clock`.

        On other steps they may be 0 there: only those of active weights need to travel between ranks. Default: every
        step for a method that observes them, steps with a reallocation for a method that scores growth.
        """
        return self.observes or (self.grows_by_gradient and self.is_due(clock))

    @property
    def grows_by_gradient(self) -> bool:
        """Whether `grow_scores` reads the gradients of the very step. Default: yes, where it is defined.

        A method that says no is asked after the step, for instance one that grows by a record from `observe`.
        """
        return self._scores_growth

    @property
    def observes(self) -> bool:
        """Whether the method keeps a record of whole gradients."""
        return type(self).observe is not Method.observe

    @property
    def _scores_growth(self) -> bool:
        return type(self).grow_scores is not Method.grow_scores

    @property
    def gain(self) -> float:
        """Growth score that a constant gradient of 1 gives in the end. Default: 1, for the gradient itself.

        Infinite where scores tell nothing about gradients.
        """
        return 1.0

    @property
    def counts_epochs(self) -> bool:
        """Whether the method reads epochs of the clock, not steps and `progress` alone. Default: no."""
        return False

    def check_length(self, end: Clock) -> None:
        """Raise UserError if the settings ask for something that comes after `end`, the clock of the last step."""

    def observes_at(self, clock: Clock) -> bool:
        """Whether `observe` is called in the step that ends at `clock`. Default: in every step, where it is defined.

        A method that needs gradients of active weights alone says no in `observes`, and here in which steps.
        """
        return self.observes

    def observe(self, layer: SparseLayer, gradient: Tensor) -> None:
        """Learn from the gradient of a layer, of its weight's shape, in a step that the optimizer makes.

        It is whole where the method `observes`. Elsewhere only its entries at active weights count.
        """

    def learnt(self, layer: SparseLayer) -> Sequence[Tensor]:
        """Tensors with all that `observe` has learnt of a layer, on its device. Default: none are named.

        Where they are, a GPU's host queues `observe` before it knows whether the step is skipped, and a skipped one
        gives them their bits from before. So `observe` changes nothing else then, no number on the host either, and
        keeps their shapes and dtypes. A class with an `observe` of its own names them anew: see `names_learnt`.
        """
        return ()

    @property
    def names_learnt(self) -> bool:
        """Whether `learnt` was written for the `observe` that is called: in its class, or in one derived from it."""
        return issubclass(_origin(type(self), "learnt"), _origin(type(self), "observe"))

    def after_step(self, masks: MaskSet, clock: Clock, seed: int) -> None:
        """Change active weights after every optimizer step. `seed` is the run's."""

    @property
    def changes_weights(self) -> bool:
        """Whether the method changes active weights after each step."""
        return type(self).after_step is not Method.after_step

    @property
    def wants_channels(self) -> bool:
        """Whether the method must know which channels go together: see `couple`. Default: no."""
        return False

    def couple(self, groups: Sequence[ChannelGroup], layers: Sequence[LayerSpec]) -> None:
        """Learn the groups of channels of the network, after `check` and before `prepare`, if it `wants_channels`.

        UserError if there are none that the method can use.
        """

    @property
    def notes(self) -> Sequence[str]:
        """Lines to show at the start of a run, such as what was found in the network. Default: none."""
        return []

    @property
    def decision_bytes(self) -> int:
        """Length of what the method decides on rank 0 before each event, beside drops and growth. Default: 0."""
        return 0

    def decide(self, clock: Clock, resting: Collection[str]) -> Tensor:
        """Decide on rank 0 alone: uint8 [decision_bytes] on the CPU. `resting`: layers in which nothing may move."""
        raise NotImplementedError

    def follow(self, decided: Tensor) -> None:
        """Take over what rank 0 has decided. Called on every rank, before the scores of the same event."""

    @in_parts
    def closed(self, layer: SparseLayer) -> Tensor | None:
        """Units that may not grow: bool [units]. Default: None, all may. Only for a method that scores growth.

        The budgets must find room in the others.
        """
        return None

    def is_due(self, clock: Clock) -> bool:
        """Whether to reallocate after this step. Default: never."""
        return False

    def exchanges(self, clock: Clock) -> bool:
        """Whether the event at `clock` follows `drop_cuts`, and not the budgets alone. Default: each one."""
        return True

    def changes_density(self, clock: Clock) -> bool:
        """Whether the budget is another after the event at `clock` than before. Default: no."""
        return False

    def is_settled(self, clock: Clock) -> bool:
        """Whether the budget has its final value: only such epochs can be a run's best. Default: always."""
        return True

    @in_parts
    def soft_drop_at(self, clock: Clock) -> int:
        """Power of the soft draw of what falls in this event. Default: `soft_drop`, at all times."""
        return self.soft_drop

    @property
    def works_in_parts(self) -> bool:
        """Whether large layers on a GPU are handled in parts: all functions that see their scores are `in_parts`.

        A soft draw is made of all scores of a layer at once, and so is the choice of a method with a reserve.
        """
        seeing = [getattr(type(self), name) for name in self.sees_scores]
        marked = all(getattr(one, "in_parts", None) is one for one in seeing)
        return marked and not (self.soft_drop or self.soft_growth or self.keeps_reserve)

    @in_parts
    def drop_scores(self, layer: SparseLayer) -> Tensor:
        """Scores for dropping, float [active units]: the lowest go first. Default: mean |w| over each unit."""
        values = layer.gather(layer.weight).abs_()
        return values.view(-1) if layer.spec.unit_size == 1 else values.mean(1)

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        """Choose the units to drop in each layer, given its `drop_scores`.

        `Reallocator` lowers a cut that would empty a layer, or drop more than can grow. Unless the method `trades`,
        that is as much as can grow in the same layer.
        """
        raise NotImplementedError

    def budgets(self, layers: Sequence[SparseLayer], clock: Clock) -> Sequence[int]:
        """Active weights of each layer after this reallocation, in whole units. Default: as many as now.

        Where the method `trades`, their sum is what counts.
        """
        return [layer.active_weights for layer in layers]

    def moving_budget(self, masks: MaskSet, clock: Clock) -> int:
        """Active weights that the layers which do not rest have after this reallocation, all together.

        A layer without a gradient in this very step stays as it is. Where the method `trades`, the others take up what
        that is more or less than its own budget, so that the total is exact. A frozen layer's budget is what it has.
        """
        layers = list(masks)
        aims = self.budgets(layers, clock)
        found = [(layer.active_weights, aim, layer.name) for layer, aim in zip(layers, aims, strict=True)]
        moving = [(now, aim) for now, aim, name in found if name not in self.resting]
        taken = sum(aim - now for now, aim, name in found if name in self.lacking) if self.trades else 0
        if not taken and all(now == aim for now, aim in moving):
            return masks.budget - masks.active_weights + sum(now for now, _ in moving)  # And what did not fit units.
        return taken + sum(aim for _, aim in moving)

    def shares(self, layers: Sequence[LayerChange]) -> Sequence[float | Fraction]:
        """Proportions in which the layers of a method that `trades` share the freed weights. Default: as they lost.

        Any scale will do. `Reallocator` makes whole units of it that sum to the budget exactly.
        """
        return [Fraction(layer.dropped * layer.unit_size) for layer in layers]

    def group_targets(self, wishes: Sequence[Wish]) -> Sequence[Tensor | None]:
        """Active units of each group after this event, int64 [groups], for each of these structured layers.

        Called on every rank with the same arguments, for several layers at once: a copy to the host serves them all.
        Default: None for each, all its groups as many.
        """
        return [None] * len(wishes)

    def may_empty(self, layers: Sequence[LayerSpec]) -> Collection[str]:
        """Names of the layers in which `group_targets` may leave groups without any weight. Default: none."""
        return ()

    @in_parts
    def grow_scores(self, layer: SparseLayer) -> Tensor | None:
        """Scores for growth, float [units]: the highest free units grow. Default: None, uniformly at random.

        Called on steps that end in a reallocation, after backward and before gradients are masked. What `observe` has
        learnt is from the steps before then. A method that does not `grows_by_gradient` is asked after the step, and
        sees no whole gradients, but what `observe` has learnt in that step too.
        """
        return None

    def begin(self, layer: SparseLayer, units: Tensor, generator: torch.Generator) -> Tensor | None:
        """First weights, float [k, unit size], of the units that have just grown (int64 [k]). Default: None, for 0.

        `generator` is on the CPU and the same on every rank.
        """
        return None

    def after(self, layers: Sequence[LayerChange]) -> None:
        """Adapt own state to the effect of a reallocation. Called on every rank with the same argument."""

    def scalars(self) -> Mapping[str, float]:
        """Numbers to log with each reallocation, such as a threshold."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State to resume from: plain data and tensors, by name. Default: none."""
        return {}

    def check_state(self, state: Mapping[str, Any], layers: Mapping[str, tuple[Sequence[int], int]]) -> None:
        """Raise ValueError, beginning with the key, or KeyError, for a state that `state_dict` cannot have given.

        `layers`: shape and number of active weights of each. Called before `prepare`, as nothing is built yet.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state. The masks given to `prepare` have been restored before."""
        assert not state, f"{type(self).__name__} keeps no state, yet {sorted(state)} was saved"


def _origin(kind: type[Method], name: str) -> type:
    """Return the class from which a method's class has the attribute."""
    return next(one for one in kind.__mro__ if name in vars(one))


def require_method(method: Method, name: str, layers: Sequence[LayerSpec], active_units: Mapping[str, int]) -> None:
    """Raise UserError if a method cannot work on these layers, given each one's active units at the start."""
    if method.trades and (bound := [layer for layer in layers if layer.structure != "free"]):
        raise UserError(
            f"method {name} moves weights between layers, and sparsity.structure {bound[0].structure} keeps the number "
            f"of each row: set the structure to free, or take a method or settings that keep to the layers"
        )
    method.check(layers, active_units)


def idle_words(method: Method, name: str, schedule: Schedule, done: int) -> str | None:
    """Return a warning if a method that moves weights will move none after the first `done` steps, else None.

    That is so where its period is longer than the run: training would be static, and nobody would notice.
    """
    coming = range(done + 1, schedule.total_steps + 1)
    moves = type(method).is_due is not Method.is_due
    if not moves or not coming or any(method.is_due(schedule.clock(step)) for step in coming):
        return None
    steps = f"{len(coming)} steps to come{schedule.said}"
    return f"method {name} will move nothing in the {steps}: see its period and stop_epoch"
