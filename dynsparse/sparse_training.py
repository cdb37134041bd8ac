"""The front door: one object beside any model, any optimizer, any loop, that makes the model sparse and keeps it so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn, optim

from dynsparse.distributed import digest, sync
from dynsparse.errors import UserError
from dynsparse.keeping.asked import Asked, Start
from dynsparse.keeping.gradients import Gradients, closure_that_looks
from dynsparse.keeping.optimizers import KnownOptimizers, overflows
from dynsparse.keeping.steps import Closure, Watcher, unwatch, watch
from dynsparse.keeping.weights import KeptWeights
from dynsparse.masks import MaskSet, naming
from dynsparse.masks.granularity import Granularity, Kind
from dynsparse.masks.obstacles import refuse_model
from dynsparse.methods import Clock, Method, MethodSettings
from dynsparse.methods.base import idle_words
from dynsparse.optimizers import leaves_zero_at_zero
from dynsparse.reallocation import OnDesync, ReallocationReport, Reallocator
from dynsparse.seeds import seed_for

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_METHODS: WeakSet[Method] = WeakSet()
"""Those that keep a model sparse: the state of each is of one model."""


def _on_the_host(act: Callable[P, T]) -> Callable[P, T]:
    """Let `act` make its small tensors on the CPU, whatever `torch.set_default_device` says."""

    @wraps(act)
    def on_the_host(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.get_default_device().type == "cpu":
            return act(*args, **kwargs)
        with torch.device("cpu"):
            return act(*args, **kwargs)

    return on_the_host


class SparseTraining(Watcher):
    """Makes `model` sparse now, and keeps it so at every optimizer step over its weights from now on.

    Gradients are masked whenever they are made, however often: in a loop of your own, in closures, with accumulation,
    under a GradScaler. After each step weights are reallocated when the method says so. What cannot be kept is refused
    with a `UserError` of one line. A step counts when weights were updated: one that a scaler skips does not.

    Args:
        model: any module, wrapped or not (DistributedDataParallel, DataParallel, torch.compile, Fabric). Weights of
            convolutions, linear, recurrent and attention layers become sparse.
        optimizer: what steps over its weights: any torch optimizer, one that holds another (Accelerate, SAM,
            ZeroRedundancyOptimizer), or a list of several, which then make one step together.
        method: a method's name; its settings as in a config, `{"name": "rigl", "period": 100}`; or a `Method`.
        sparsity: share of zeros in each layer; or by kind, `{"conv": 0.9, "fc": 0.5}`, where a kind that is left out
            or 0 stays dense.
        total_steps: optimizer steps of the whole run: batches over gradient accumulation. Schedules end with it.
        steps_per_epoch: optimizer steps of an epoch, for methods whose settings speak of epochs.
        allocation, granularity, include, exclude: as in a config's `sparsity` section.
        masks: instead of `sparsity`, what is active at the start: bool tensors of the weights' shapes by layer, or the
            `MaskSet` that the model has. "random": draw them though the model is sparse already.
        state: a `state_dict()` to go on from; the model holds the weights of that time already.
        steps: optimizer steps that came before, where a run begins later in its schedules.
        seed: of masks and growth. The same on every rank.
        process_group: the ranks that train this model; None: all. Needed where ranks train models of their own.
        on_desync: "abort" or "repair", when ranks hold different masks or weights.
        on_reallocation: called with each `ReallocationReport`.
        mask_in_backward: mask gradients as soon as backward has made them, so that norms and clipping see those of
            the active weights. False for a loop that leaves them 0 outside the masks itself, unless
            `wants_whole_gradients`, and calls `prepare_gradients()` before each step.

    All ranks construct it with the same arguments. Raises UserError for what cannot work, and leaves all as it was.
    """

    @_on_the_host
    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer | Sequence[optim.Optimizer],
        method: str | Mapping[str, Any] | MethodSettings | Method,
        *,
        sparsity: float | Mapping[Kind, float] | None = None,
        total_steps: int,
        steps_per_epoch: int | None = None,
        allocation: str = "uniform",
        granularity: Granularity = 4,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        masks: MaskSet | Mapping[str, Tensor] | str | None = None,
        state: Mapping[str, Any] | None = None,
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
            include=include,
            exclude=exclude,
            steps=steps,
            seed=seed,
            on_desync=on_desync,
        )
        refuse_model(model)
        start = Start.of(naming.unwrapped(model), method, asked, masks, state)
        if start.method in _METHODS:
            raise UserError(f"the {type(start.method).__name__} given is another model's already: make one for each")
        self.model = start.model
        self.method = start.method
        self.steps = steps
        self._asked = asked
        self._kind = start.method_name
        self._require_length()
        self._optimizers = KnownOptimizers(optimizer, start.weights, whole_state=on_desync == "repair")
        self.masks = start.build_masks(asked.seed)
        self.method.prepare(self.masks)
        if state is not None:
            self._restore(state)

        # Nothing is refused any more: from here on the model changes.
        self.masks.apply_to_weights()
        self._optimizers.mask_new_states(self.masks)
        self.reallocator = Reallocator(
            self.model, self.masks, self.method, seed=asked.seed, on_desync=on_desync, group=process_group
        )
        self._weights = KeptWeights(self.model, self.masks)
        self._gradients = Gradients(
            self.masks, self.reallocator, lambda: self.clock(self.steps + 1), masking=mask_in_backward
        )
        self._tell = on_reallocation or (lambda report: None)
        self._stepped: set[int] = set()
        self._events = 0
        self._is_unverified, self._said_over = True, False
        _METHODS.add(self.method)
        watch(self, self._weights.held)
        self._say_at_the_start(start)

    def __repr__(self) -> str:
        masks = self.masks
        return (
            f"SparseTraining({self._kind}, {len(masks)} layers, {masks.active_weights:,} of {masks.weights:,} weights "
            f"active, step {self.steps} of {self._asked.total_steps})"
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

    # What a loop may call.

    @_on_the_host
    def prepare_gradients(self) -> None:
        """Look at the gradients and mask them now, after the last backward and `GradScaler.unscale_`.

        Only needed by what uses gradients before the step, such as clipping by norm, in the steps in which the method
        looks at whole gradients: RigL's reallocations, each step of sparse momentum. Nothing is learnt from them if no
        step follows.
        """
        self._gradients.look(self.masks)

    @property
    def wants_whole_gradients(self) -> bool:
        """Whether the gradients of the coming step matter outside the masks too."""
        return self._gradients.are_wanted_whole

    def wants_whole_gradients_in(self, step: int) -> bool:
        """The same of the step with this number, counted from 1."""
        return self.reallocator.wants_whole_gradients(self.clock(step))

    @_on_the_host
    def skip_step(self) -> None:
        """Count a step in which no weights are updated, for schedules that go by batches, in place of the optimizer's.

        Reallocates if due, unless that takes the step's gradients.
        """
        self.steps += 1
        self._begin_round()
        self._report(self.reallocator.after_skipped_step(self.clock(self.steps)))

    @_on_the_host
    @torch.no_grad()
    def apply_masks(self, model: nn.Module | None = None) -> None:
        """Set to 0 what lies outside the masks in a copy of the model, such as an average of its weights (EMA).

        Whatever wraps the copy, on whatever device. None: in the model itself. UserError if it has other layers.
        """
        if model is None:
            self.masks.apply_to_weights()
            self._weights.remember()
            return
        for layer, weight in self._weights.in_copy(model):
            weight.masked_fill_(layer.inactive.to(weight.device), 0)

    @_on_the_host
    def verify(self) -> list[str]:
        """Prove that all ranks hold the same masks and weights; see `Reallocator.verify`."""
        return self.reallocator.verify(self.steps)

    def check(self) -> None:
        """Assert that the budget is met and all weights outside the masks are 0. Full scans."""
        self.masks.check()

    def release(self) -> None:
        """Keep the model sparse no more. It stays as it is."""
        _METHODS.discard(self.method)
        self._gradients.release()
        unwatch(self, self._weights.held)

    def clock(self, step: int) -> Clock:
        """Where training stands after the step with this number."""
        return self._asked.schedule.clock(step)

    @_on_the_host
    def state_dict(self) -> dict[str, Any]:
        """Plain data and CPU tensors, for `load_state_dict` or `state=`. Save it beside the model's and optimizer's."""
        return {
            "steps": self.steps,
            "method": {"name": self._kind, "state": self.method.state_dict()},
            "sparsity": dict(self._asked.sparsity) if self._asked.sparsity is not None else None,
            "masks": self.masks.state_dict(),
            "weights": digest.active_digest(self.masks),
        }

    @_on_the_host
    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Go on from a saved state, after the model's and the optimizer's of the same time were loaded.

        UserError if it is of another method, sparsity or network, or if the model's weights are not those that it was
        saved with. With `strict=False` they may be others: what lies outside the masks is set to 0.
        """
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

    # What happens around a step.

    @_on_the_host
    def before_step(self, optimizer: optim.Optimizer, closure: Closure | None) -> Closure | None:
        """Called before each step over the weights."""
        self._meet(optimizer)
        self._weights.require_same()
        if self._weights.have_moved():
            self._follow()
        self._weights.require_clean(self.steps)
        if self._optimizers.number_of(optimizer, self.masks) in self._stepped:
            self._count()  # The others made no step in this round.
        layers = self._optimizers.layers_of(optimizer, self.masks)
        if closure is not None:  # It adds to what is there, of other batches, before anything is used.
            self._gradients.are_there = any(layer.weight.grad is not None for layer in self.masks)
            return closure_that_looks(closure, self._gradients, layers)
        self._gradients.are_there = False  # Those that were looked at may be gone.
        scale = getattr(optimizer, "grad_scale", None)
        self._gradients.look(layers, scale=scale, keep=bool(self._stepped))
        return None

    @_on_the_host
    def inside_step(self, optimizer: optim.Optimizer) -> None:
        """Called before a step of an optimizer inside another one."""
        self._meet(optimizer)
        self._gradients.look(self._optimizers.layers_of(optimizer, self.masks), keep=bool(self._stepped))

    @_on_the_host
    def after_step(self, optimizer: optim.Optimizer) -> None:
        """Called after each step over the weights."""
        if overflows(optimizer) or not self._gradients.are_there:
            self._begin_round()
            return
        self.reallocator.learn(self._gradients.seen, self._optimizers.layers_of(optimizer, self.masks))
        number = self._optimizers.number_of(optimizer, self.masks)
        if number is not None:
            self._stepped.add(number)
        if number is None or len(self._stepped) == len(self._optimizers.given):
            self._count()
            return
        if not self._weights.relies:
            self.masks.apply_to_weights()
        self._weights.remember()

    def meets(self, optimizer: optim.Optimizer) -> None:
        """Called before each step over none of the weights: refuse it if they were replaced by what it moves."""
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

    def _count(self) -> None:
        """Count a step in which weights were updated, and do what follows it."""
        self.steps += 1
        clock = self.clock(self.steps)
        due = self.reallocator.is_due(clock)
        self._weights.keep_outside_zero(self.steps, look=due and not self.method.every_step)
        if self._is_unverified:
            self._is_unverified = False
            self._require_same_everywhere()
            self.verify()
        self.reallocator.optimizers = self._optimizers.alive
        self.reallocator.untrained = self._optimizers.untrained(self.masks) if due else set()
        report = self.reallocator.after_step(clock, self._gradients.seen)
        self._begin_round()
        if self.steps > self._asked.total_steps and not self._said_over:
            self._said_over = True
            log.warning(
                "step %d goes beyond total_steps=%d: schedules are at their end; total_steps counts optimizer steps",
                self.steps,
                self._asked.total_steps,
            )
        self._report(report)

    def _begin_round(self) -> None:
        """Forget what belonged to the step that is over."""
        self._stepped.clear()
        self._gradients.begin_round()
        self._weights.remember()

    def _report(self, report: ReallocationReport | None) -> None:
        if report is None:
            return
        self._events += 1
        self._gradients.follow_masks()
        if not self.method.every_step:
            self._weights.watch(1)
        self._say_if_nothing_moved(report)
        self._tell(report)

    def _follow(self) -> None:
        """Move masks and the method's tensors to where the weights are now."""
        state = self.method.state_dict()
        self.masks.to(self.masks.layers[0].weight.device)
        self.method.prepare(self.masks)
        self.method.load_state_dict(state)

    # What is refused.

    def _require_length(self) -> None:
        """Refuse a run that ends before the method has reached what it is for."""
        end = self.clock(self._asked.total_steps)
        if self.method.counts_epochs and self._asked.steps_per_epoch is None:
            raise UserError(
                f"method {self._kind} has settings that speak of epochs: say how long one is, with steps_per_epoch= "
                f"(optimizer steps)"
            )
        self.method.check_length(end)

    def _require_same_everywhere(self) -> None:
        """Refuse ranks that made it with other arguments: they would do other things at other times."""
        settings = getattr(self.method, "settings", None)
        mine = torch.tensor([seed_for(self._asked, self._kind, settings)])
        if sync.all_agree(["arguments"], mine, self.reallocator.group):
            raise UserError(
                "ranks made SparseTraining with different arguments; give all the same, or each a process_group of its "
                "own where they train models of their own"
            )

    def _restore(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Take over masks, the method's state and the steps. UserError if they are not of this model's weights."""
        if missing := {"steps", "method", "sparsity", "masks", "weights"} - set(state):
            raise UserError(f"the state is none of a SparseTraining: it lacks {', '.join(sorted(missing))}")
        if state["method"]["name"] != self._kind:
            raise UserError(f"the state is of method {state['method']['name']}, this is {self._kind}; go on with it")
        ours = self._asked.sparsity
        if ours is not None and state["sparsity"] is not None and dict(state["sparsity"]) != dict(ours):
            raise UserError(
                f"the state was made with sparsity {state['sparsity']}, this has {dict(ours)}; take the same"
            )
        try:
            self.masks.load_state_dict(state["masks"])
            self.method.load_state_dict(state["method"]["state"])
            self.steps = int(state["steps"])
        except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise UserError(
                f"the state is damaged, or of another version of this method ({type(error).__name__}: {error})"
            ) from error
        if strict and (digest.active_digest(self.masks) != state["weights"] or self.masks.strays()):
            raise UserError(
                "the model's weights are not those that this state was saved with: load the model's state_dict() of "
                "the same time first; if they are to be others, load_state_dict(state, strict=False)"
            )

    # What is said.

    def _say_at_the_start(self, start: Start) -> None:
        """Warn of what is otherwise than one may think."""
        start.say_what_is_left(self.masks)
        if start.draws and self._optimizers.have_stepped(self.masks):
            log.warning(
                "the optimizer has stepped over these weights already, and the masks are drawn at random: most of what "
                "was trained is 0 now; method pruning keeps the largest weights"
            )
        if idle := idle_words(self.method, self._kind, self._asked.schedule, self.steps):
            log.warning("%s", idle)

    def _say_if_nothing_moved(self, report: ReallocationReport) -> None:
        """Warn if the first event of a method that asks each layer for moves made none."""
        asks = not (self.method.every_step or self.method.trades)
        if self._events == 1 and asks and not any(report.dropped.values()):
            log.warning(
                "the reallocation after step %d moved no weight: what %s asks of a layer rounds to none, or "
                "none has free places",
                report.step,
                self._kind,
            )
