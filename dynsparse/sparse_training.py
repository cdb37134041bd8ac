"""The front door: one object beside any model, optimizer and loop, which makes the model sparse and keeps it so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn
from weakref import WeakValueDictionary

import torch
from torch import nn, optim
from torch.amp import GradScaler

from dynsparse.distributed import sync
from dynsparse.errors import UserError
from dynsparse.first_masks import Loss
from dynsparse.keeping.arguments import require_same
from dynsparse.keeping.asked import Asked
from dynsparse.keeping.first import Given
from dynsparse.keeping.gradients import Gradients, closure_that_looks
from dynsparse.keeping.host import on_the_host
from dynsparse.keeping.notices import warn_at_start, warn_beyond, warn_if_nothing_moved
from dynsparse.keeping.optimizers import KnownOptimizers, overflows, skip_flag
from dynsparse.keeping.rounds import Round
from dynsparse.keeping.setup import Setup
from dynsparse.keeping.state import require_mapping, restore, state_of
from dynsparse.keeping.steps import Closure, Watcher, unwatch, watch
from dynsparse.keeping.weights import KeptWeights
from dynsparse.masks import MaskSet, naming
from dynsparse.masks.granularity import Granularity, Kind
from dynsparse.masks.obstacles import refuse_model
from dynsparse.methods import Clock, Method, MethodSettings
from dynsparse.optimizers import leaves_zero_at_zero
from dynsparse.reallocation import OnDesync, Owed, ReallocationReport, Reallocator

_METHODS: WeakValueDictionary[int, Method] = WeakValueDictionary()
"""Methods that keep a model sparse, by identity. The state of each belongs to one model."""


class SparseTraining(Watcher):
    """Makes `model` sparse now, and keeps it so at every optimizer step over its weights from now on.

    Gradients are masked whenever they are made, however often: in a loop of your own, in closures, with accumulation,
    under a GradScaler. After a step, weights are reallocated if the method says so. A model or loop that cannot be kept
    sparse is refused with a `UserError` of one line. A step counts when weights were updated: one that a scaler skips
    does not count.

    Args:
        model: any module, wrapped or not (DistributedDataParallel, DataParallel, torch.compile, Fabric). Weights of
            convolutions, linear, recurrent and attention layers become sparse.
        optimizer: the optimizer of its weights: any torch optimizer, one that holds another (Accelerate, SAM,
            ZeroRedundancyOptimizer), or a list of several, which then make one step together.
        method: a method's name; its settings as in a config, `{"name": "rigl", "period": 100}`; or a `Method`.
        sparsity: fraction of zeros in each layer; or by kind, `{"conv": 0.9, "fc": 0.5}`, where a kind that is missing
            or 0 stays dense.
        total_steps: optimizer steps of the whole run: batches over gradient accumulation. Schedules end with it.
        steps_per_epoch: optimizer steps of an epoch, for methods with settings in epochs. {0: 200, 30: 400} where
            epochs differ in length: 200 in each of the first thirty, 400 in each later one.
        allocation: "uniform" or "erk", where small layers are denser.
        granularity: unit of a convolution: 4 an element, 3 a kernel row, 2 a kernel slice, 1 a filter.
        structure: pattern of the masks: free; fan_in, as many inputs for each output; or N:M, such as 2:4.
        include: patterns of parameter names to make sparse, in place of the usual choice.
        exclude: patterns of parameter names to keep dense.
        split: patterns of parameters that pack several layers as blocks of rows, with their number, such as
            `{"*.qkv.weight": 3}`. Query, key and value of nn.MultiheadAttention are three layers without it.
        masks: instead of `sparsity`, the active weights at the start: bool tensors of the weights' shapes by layer, of
            the `structure` asked for, or the `MaskSet` that the model has. Beside `sparsity`: "magnitude" keeps the
            largest of the weights that the model has in each layer, "random" draws masks though the model is sparse
            already. "snip", "grasp" and "synflow" keep those of the highest score, or with options
            `{"name": "snip", "scope": "layer"}`.
        batches: for masks by score, pairs (inputs, targets) of this rank on the model's device. Inputs are a tensor, a
            tuple of arguments, or a mapping of keyword arguments. "synflow" looks at the shape of the first alone.
        loss: for "snip" and "grasp", called with the model's outputs and targets; returns the batch's mean loss.
        state: a `state_dict()` to resume from; the model holds the weights of that time already.
        input_shape: shape of one input without the batch, such as (3, 224, 224), for a method that takes channels out:
            the model is traced with it, by torch-pruning (the extra `export`).
        steps: optimizer steps that came before, where a run starts later in its schedules.
        seed: of masks and growth. The same on every rank.
        process_group: the ranks that train this model; None: all. Needed where ranks train models of their own.
        on_desync: "abort" or "repair", when ranks hold different masks or weights.
        on_reallocation: called with each `ReallocationReport`.
        mask_in_backward: mask gradients as soon as backward has made them, so that norms and clipping see those of
            the active weights. False for a loop that leaves them 0 outside the masks itself, unless
            `wants_whole_gradients`, and calls `prepare_gradients()` before each step. What it writes to them after
            that is masked.

    All ranks construct it with the same arguments. Raises UserError for what cannot work, and then changes nothing.
    """

    @on_the_host
    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer | Sequence[optim.Optimizer],
        method: str | Mapping[str, Any] | MethodSettings | Method,
        *,
        sparsity: float | Mapping[Kind, float] | None = None,
        total_steps: int,
        steps_per_epoch: int | Mapping[int, int] | None = None,
        allocation: str = "uniform",
        granularity: Granularity = 4,
        structure: str = "free",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        split: Mapping[str, int] = MappingProxyType({}),
        masks: MaskSet | Mapping[str, Any] | str | None = None,
        batches: Iterable[Any] | None = None,
        loss: Loss | None = None,
        state: Mapping[str, Any] | None = None,
        input_shape: Sequence[int] | None = None,
        steps: int = 0,
        seed: int = 0,
        process_group: sync.Group = None,
        on_desync: OnDesync = "abort",
        on_reallocation: Callable[[ReallocationReport], None] | None = None,
        mask_in_backward: bool = True,
    ) -> None:
        asked = Asked.of(
            sparsity=sparsity,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            allocation=allocation,
            granularity=granularity,
            structure=structure,
            include=include,
            exclude=exclude,
            split=split,
            input_shape=input_shape,
            steps=steps,
            seed=seed,
            on_desync=on_desync,
        )
        refuse_model(model)
        if state is not None:
            require_mapping(state)
        given = Given(batches, loss, asked.seed, process_group)
        setup = Setup.of(naming.unwrapped(model), method, asked, masks, state, given)
        if id(setup.method) in _METHODS:
            raise UserError(f"the {type(setup.method).__name__} given is another model's already: make one for each")
        self.model = setup.model
        self.method = setup.method
        self.steps = steps
        self._asked = asked
        self._method_name = setup.method_name
        self._optimizers = KnownOptimizers(
            optimizer,
            setup.weights,
            whole_state=on_desync == "repair",
            keeps_reserve=setup.method.keeps_reserve,
        )
        self.masks = setup.build_masks(asked.seed)
        self.method.prepare(self.masks)
        self.reallocator = Reallocator(
            self.model,
            self.masks,
            self.method,
            *self._optimizers.alive,
            seed=asked.seed,
            on_desync=on_desync,
            group=process_group,
        )
        if state is not None:
            self._restore(state)

        # Nothing is refused any more: from here on the model changes.
        self.masks.apply_to_weights()
        self._optimizers.mask_new_states(self.masks)
        self._weights = KeptWeights(self.model, self.masks, keeps_reserve=self.method.keeps_reserve)
        self._gradients = Gradients(
            self.masks,
            self.reallocator,
            lambda: self.clock(self.steps + 1),
            lambda: self._optimizers.scaled(self.masks),
            self._follow,
            masking=mask_in_backward,
        )
        self._tell = on_reallocation or (lambda report: None)
        self._round = Round(len(self._optimizers.given))
        self._events = 0
        self._is_unverified, self._said_over = True, False
        _METHODS[id(self.method)] = self.method
        watch(self, self._weights.held)
        warn_at_start(
            setup,
            asked,
            self.masks,
            steps=self.steps,
            given_masks=masks is not None,
            has_stepped=self._optimizers.have_stepped(self.masks),
        )

    def __repr__(self) -> str:
        masks = self.masks
        layers = f"{len(masks)} layer{'' if len(masks) == 1 else 's'}"
        return (
            f"SparseTraining({self._method_name}, {layers}, {masks.active_weights:,} of {masks.weights:,} weights "
            f"active ({100 * masks.sparsity:.2f} % sparse), step {self.steps} of {self._asked.total_steps})"
        )

    def __copy__(self) -> NoReturn:
        self.__reduce__()

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__reduce__()

    def __reduce__(self) -> NoReturn:
        raise UserError(
            "a SparseTraining belongs to one model and its optimizer, it cannot be copied or pickled: save its "
            "state_dict(), and give that as state= to a new one (keep it out of a module that is copied or pickled)"
        )

    # For the loop to call.

    @on_the_host
    def prepare_gradients(self) -> None:
        """Look at the gradients and mask them now, after the last backward and `GradScaler.unscale_`, before clipping.

        A loop calls it if it uses gradients before the step, for instance to clip by norm, and the method reads whole
        gradients: RigL at reallocations, sparse momentum at each step. Nothing is learnt if no step follows.
        `unscale_` raises a UserError if it comes too late. A fused optimizer may unscale in its own step.
        """
        self._follow()
        self._gradients.look(self.masks)

    @property
    def wants_whole_gradients(self) -> bool:
        """Whether the method reads gradients outside the masks too in the coming step."""
        return self._gradients.are_wanted_whole

    def wants_whole_gradients_in(self, step: int) -> bool:
        """Whether the method reads gradients outside the masks too in the step with this number, counted from 1."""
        return self.reallocator.wants_whole_gradients(self.clock(step))

    @on_the_host
    def skip_step(self) -> None:
        """Count a step without an update of weights, instead of the optimizer's, for schedules that go by batches.

        Reallocates if due. A method that needs the step's gradients for that does so after the next step.
        """
        self._follow()
        self.steps += 1
        self._gradients.scales.used(self.masks)
        self._begin_round()
        self._report(self.reallocator.after_skipped_step(self.clock(self.steps)))

    @property
    def owed_event(self) -> int | None:
        """Step whose reallocation the next step makes up for, as its gradients were of no use; None without one."""
        return None if self.reallocator.owed is None else self.reallocator.owed.event.step

    @owed_event.setter
    def owed_event(self, step: int | None) -> None:
        """UserError if no reallocation of that step can be owed after the steps so far."""
        can_be = type(step) is int and 1 <= step <= self.steps and self.method.grows_by_gradient
        if step is not None and not can_be:
            raise UserError(f"the state is damaged: it owes the reallocation of step {step} after {self.steps} steps")
        self.reallocator.owed = None if step is None else Owed(self.clock(step), self.steps + 1)

    def needs_outcome(self, step: int) -> bool:
        """Whether more than the optimizer depends on whether the step with this number, counted from 1, is made.

        So it is where weights are reallocated, and where the method moves weights itself, or learns from gradients what
        a device cannot undo.
        """
        return self.reallocator.acts_at(self.clock(step))

    def leave_open(self) -> None:
        """Count the coming step whether it is made or the optimizer skips it by `found_inf`, which nobody reads then.

        For a loop whose schedules go by batches and that does not wait for a GPU: a fused optimizer skips a step there.
        UserError if the step `needs_outcome`: read it before, and make the step or call `skip_step`. Also if an
        optimizer of the weights cannot skip a step there.
        """
        if (
            not self._round.has_stepped
        ):  # Else the step before may not be over: the coming one is looked at when it begins.
            self._require_no_outcome()
        if waiting := self._optimizers.waiting:
            raise UserError(
                f"step {self.steps + 1} was left open, and {type(waiting[0]).__name__} cannot skip a step on the "
                f"device: make it with fused=True where it has that, or leave out leave_open()"
            )
        self._round.is_left_open = True

    def _require_no_outcome(self) -> None:
        if self.needs_outcome(self.steps + 1):
            raise UserError(
                f"step {self.steps + 1} was left open, and masks or the method depend on whether it is made: read "
                f"that where needs_outcome() says so, and make the step or call skip_step()"
            )

    @on_the_host
    @torch.no_grad()
    def apply_masks(self, model: nn.Module | None = None) -> None:
        """Set weights outside the masks to 0 in a copy of the model, such as an average of its weights (EMA).

        The copy may be wrapped, and lie on any device. None: the model itself. UserError if it has other layers.
        """
        self._follow()
        if model is None:
            self.masks.apply_to_weights()
            self._weights.remember()
            return
        for layer, weight in self._weights.in_copy(model):
            weight.masked_fill_(layer.inactive.to(weight.device), 0)

    @on_the_host
    def verify(self) -> list[str]:
        """Prove that all ranks hold the same masks and weights, see `Reallocator.verify`."""
        self._follow()
        repaired = self.reallocator.verify(self.steps)
        if repaired:  # Other masks and weights than those that gradients were masked by.
            self._gradients.follow_masks()
            self._weights.remember()
        return repaired

    def check(self) -> None:
        """Assert that the budget is met and all weights outside the masks are 0. It reads all weights."""
        self._follow()
        self.masks.check()

    def release(self) -> None:
        """Stop keeping the model sparse. It stays as it is."""
        _METHODS.pop(id(self.method), None)
        self._gradients.release()
        unwatch(self, self._weights.held)

    def clock(self, step: int) -> Clock:
        """Clock after the step with this number, counted from 1."""
        return self._asked.schedule.clock(step)

    @on_the_host
    def state_dict(self) -> dict[str, Any]:
        """Plain data and CPU tensors, for `load_state_dict` or `state=`. Save it beside the model's and optimizer's."""
        self._follow()
        return state_of(self.steps, self.owed_event, self.method, self._method_name, self._asked.sparsity, self.masks)

    @on_the_host
    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Resume from a saved state, after the model's and the optimizer's of the same time were loaded.

        UserError if it is of another method, sparsity or network, or if the model's weights are not those that it was
        saved with. With `strict=False` they may be others: weights outside the masks are set to 0. After an error all
        is as it was.
        """
        require_mapping(state)
        self._follow()
        before = self.steps, self.masks.state_dict(), self.method.state_dict()
        try:
            self._restore(state, strict=strict)
        except UserError:
            self.steps = before[0]
            self.masks.load_state_dict(before[1])
            self.method.load_state_dict(before[2])
            raise
        self.masks.apply_to_weights()
        self._gradients.follow_masks()
        self._optimizers.mask_states(self.masks)
        self._begin_round()
        self._weights.watch()

    # Called around each step, by `watch`.

    @on_the_host
    def before_step(self, optimizer: optim.Optimizer, closure: Closure | None) -> Closure | None:
        """Check weights and look at gradients before a step over the weights."""
        self._meet(optimizer)
        self._require_kept()
        number = self._optimizers.number_of(optimizer, self.masks)
        if number in self._round.turns:
            self._close_late()
        if number is not None:
            self._round.takes_unscaled(number)
        if not self._round.has_stepped:
            if self._round.is_left_open:
                self._require_no_outcome()
            self._round.open()
        layers = self._optimizers.layers_of(optimizer, self.masks)
        scale = self._optimizers.scale_of(optimizer)
        if closure is not None:  # It adds to gradients of other batches before any are used.
            self._gradients.are_there = any(layer.parameter.grad is not None for layer in self.masks)
            return closure_that_looks(closure, self._gradients, layers)
        self._gradients.are_there = False  # Gradients that were looked at may be gone.
        self._gradients.stepping(layers, scale)
        self._gradients.look(layers, keep=self._round.has_stepped)
        return None

    @on_the_host
    def inside_step(self, optimizer: optim.Optimizer) -> None:
        """Look at gradients before a step of an optimizer inside another one."""
        self._meet(optimizer)
        layers = self._optimizers.layers_of(optimizer, self.masks)
        self._gradients.stepping(layers, self._optimizers.scale_of(optimizer))
        self._gradients.look(layers, keep=self._round.has_stepped)

    @on_the_host
    def after_unscaling(self, optimizer: optim.Optimizer, scaler: GradScaler) -> None:
        """Take note that gradients have their true size. UserError if the method has seen them at another."""
        number = self._optimizers.number_of(optimizer, self.masks)
        if number in self._round.turns:  # These gradients are for its next step.
            self._require_kept()
            self._close_late()
        if number is not None:
            self._round.unscaled(number)
        layers = self._optimizers.layers_of(optimizer, self.masks)
        others = len(layers) < len(self.masks)
        factor = scaler.scale(torch.ones((), device=layers[0].parameter.device)) if layers and others else None
        self._gradients.scales.unscaled(layers, factor)

    @on_the_host
    def after_scaler(self, optimizer: optim.Optimizer) -> None:
        """Take note of a step that a GradScaler has skipped without calling the optimizer."""
        number = self._optimizers.number_of(optimizer, self.masks)
        if number is None or not self._round.takes_unscaled(number):
            return
        self._require_kept()
        self._skip_turn(number, optimizer)

    @on_the_host
    def after_step(self, optimizer: optim.Optimizer) -> None:
        """Count a step over the weights, if it was made, and reallocate if due."""
        number = self._optimizers.number_of(optimizer, self.masks)
        is_empty = not self._gradients.are_there
        if is_empty or (not self._round.is_open and overflows(optimizer)):
            if number is None or (is_empty and not self._round.has_stepped):
                self._begin_round()
            else:
                self._skip_turn(number, optimizer)
            return
        unless = skip_flag(optimizer) if self._round.is_open else None
        self.reallocator.learn(self._gradients.seen, self._optimizers.layers_of(optimizer, self.masks), unless=unless)
        if number is not None:
            self._round.turns[number] = True
        if number is None or self._round.is_over:
            self._count()
            return
        if not self._weights.relies:
            self.masks.apply_to_weights()
        self._weights.remember()

    def meets(self, optimizer: optim.Optimizer) -> None:
        """Refuse a step over none of the weights if it moves what replaced them in the model."""
        if not self._weights.are_intact():
            theirs = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            if any(id(parameter) in theirs for parameter in naming.named_parameters(self.model).values()):
                self._weights.require_same()

    def _meet(self, optimizer: optim.Optimizer) -> None:
        """Take note of an optimizer that is about to step."""
        self._optimizers.see(optimizer)
        self._optimizers.mask_new_states(self.masks)
        if not leaves_zero_at_zero(optimizer):
            self._weights.relies = False

    def _require_kept(self) -> None:
        """Raise UserError if the weights were replaced, moved apart, or written outside the masks."""
        self._weights.require_same()
        self._follow()
        self._weights.require_clean(self.steps)

    def _skip_turn(self, number: int, optimizer: optim.Optimizer) -> None:
        """End the turn of one of several optimizers that made no step. The round counts if another one makes one."""
        if number in self._round.turns:
            self._close_late()
        self._round.turns[number] = False
        self._gradients.scales.used(self._optimizers.layers_of(optimizer, self.masks))
        self._weights.remember()
        if self._round.is_over:
            self._close_round()

    def _close_round(self) -> None:
        """End a round, which counts if any optimizer made its step."""
        if self._round.has_stepped:
            self._count()
        else:
            self._begin_round()

    def _close_late(self) -> None:
        """End a round when the next one has begun: an optimizer had its turn before, and others had none."""
        is_left_open = self._round.is_left_open
        self._close_round()
        self._round.is_left_open = is_left_open

    def _count(self) -> None:
        """Count a step in which weights were updated, then check the weights and reallocate if due."""
        self._gradients.end_round(self._optimizers.only_skipping(self._round.turns, self.masks))
        self.steps += 1
        clock = self.clock(self.steps)
        due = self.reallocator.is_due(clock)
        self._weights.keep_outside_zero(self.steps, look=due and not self.method.every_step)
        if self._is_unverified:
            self._is_unverified = False
            settings = getattr(self.method, "settings", None)
            require_same(self._asked, self._method_name, settings, self.reallocator.group)
            self.verify()
        self.reallocator.optimizers = self._optimizers.alive
        self.reallocator.untrained = self._optimizers.untrained(self.masks) if due else set()
        report = self.reallocator.after_step(clock, self._gradients.seen)
        self._begin_round()
        if self.steps > self._asked.total_steps and not self._said_over:
            self._said_over = True
            warn_beyond(self.steps, self._asked.total_steps)
        self._report(report)

    def _begin_round(self) -> None:
        """Forget the gradients of the step that is over, and start the next one."""
        self._round.begin()
        self._gradients.begin_round()
        self._weights.remember()

    def _report(self, report: ReallocationReport | None) -> None:
        if report is None:
            return
        self._events += 1
        self._gradients.follow_masks()
        if not self.method.every_step:
            self._weights.watch(1)
        if self._events == 1:
            warn_if_nothing_moved(self.method, self._method_name, report)
        self._tell(report)

    @on_the_host
    def _follow(self) -> None:
        """Move masks and the method's tensors to where the weights lie. UserError if they lie on several devices."""
        if not self._weights.have_moved():
            return
        state = self.method.state_dict()
        self.masks.to(self.masks.layers[0].parameter.device)
        self.method.prepare(self.masks)
        self.method.load_state_dict(state)

    def _restore(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Load masks, the method's state and the steps. Weights stay as they are."""
        asked = self._asked.sparsity
        self.steps, self.owed_event = restore(state, self.method, self._method_name, asked, self.masks, strict=strict)
