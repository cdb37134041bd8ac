"""Carry out a method's decisions: the same object, with the same state, on every rank."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn, optim

from dynsparse.distributed import agreement, digest, sync
from dynsparse.errors import DesyncError, UserError
from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.costs import Costs
from dynsparse.masks.made import MadeAnew
from dynsparse.masks.parted import Scores, whole
from dynsparse.masks.soft import sharpened, soft_costs, soft_order
from dynsparse.masks.tensors import copy_
from dynsparse.methods import Clock, Method
from dynsparse.reallocation.applying import Applier
from dynsparse.reallocation.plan import Plan
from dynsparse.reallocation.planning import Planner
from dynsparse.reallocation.report import ReallocationReport
from dynsparse.reallocation.room import are_many, staying
from dynsparse.reallocation.seen import Seen, drop_scores, excluded, growth_costs, unscaled
from dynsparse.seeds import seed_for

log = logging.getLogger(__name__)
OnDesync = Literal["abort", "repair"]


class Owed(NamedTuple):
    """An event whose step was skipped, and with it the gradients to grow by."""

    event: Clock
    """Time when it was due."""
    step: int
    """Step that makes up for it."""


class Reallocator:
    """Moves weights when a method says so, and proves that all ranks hold the same ones.

    Around each optimizer step it is called twice with the same clock: `before_step` gives what was seen of the
    gradients, `after_step` takes it.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: MaskSet,
        method: Method,
        *optimizers: optim.Optimizer,
        seed: int = 0,
        on_desync: OnDesync = "abort",
        group: sync.Group = None,
    ) -> None:
        self.model = model
        self.masks = masks
        self.method = method
        self.optimizers = list(optimizers)
        self.seed = seed
        self.on_desync = on_desync
        self.group = group
        self.untrained: set[str] = set()
        """Layers that no optimizer moves: they rest."""
        self.owed: Owed | None = None
        """Event that the next step makes up for."""

    def is_settled(self, clock: Clock) -> bool:
        """Whether the masks have their final density: see `Method.is_settled`."""
        waits = self.owed is not None and self.method.changes_density(self.owed.event)
        return not waits and self.method.is_settled(clock)

    def is_due(self, clock: Clock) -> bool:
        """Whether weights move after the step that ends at `clock`."""
        return self._makes_up(clock) or (len(self.masks) > 0 and self.method.is_due(clock))

    def _makes_up(self, clock: Clock) -> bool:
        """Whether the step that ends at `clock` makes up for an event."""
        return self.owed is not None and self.owed.step == clock.step

    def acts_at(self, clock: Clock) -> bool:
        """Whether the step that ends at `clock` changes what the device cannot leave as it was if it is skipped.

        The optimizer's part aside, that is the masks, active weights that the method moves, or what it learns.
        """
        learns = self.method.observes_at(clock) and not self._can_unlearn
        return self.is_due(clock) or self.method.changes_weights or learns

    @property
    def _can_unlearn(self) -> bool:
        """Whether a flag on the device can undo what the method learns from the coming step."""
        reserve = self.method.reserve
        return self.method.names_learnt and (reserve is None or reserve.can_skip(self.optimizers))

    def wants_whole_gradients(self, clock: Clock) -> bool:
        """Whether the method reads gradients outside the masks too in the step that ends at `clock`."""
        return self._makes_up(clock) or (len(self.masks) > 0 and self.method.wants_whole_gradients(clock))

    def reads_gradients(self, clock: Clock) -> bool:
        """Whether the method learns from the gradients of the step that ends at `clock`, or scores growth by them."""
        return self.method.observes_at(clock) or (self.is_due(clock) and self.method.grows_by_gradient)

    @torch.no_grad()
    def before_step(self, clock: Clock) -> Seen:
        """Look at the gradients between backward and the optimizer's step `clock.step`, learn from them, mask them."""
        seen = self.look(clock, self.masks)
        self.masks.mask_gradients()
        self.learn(seen, self.masks)
        return seen

    @torch.no_grad()
    def look(
        self, clock: Clock, layers: Iterable[SparseLayer], *, scale: Tensor | None = None, later: bool = False
    ) -> Seen:
        """Look at the gradients of some layers before they are masked. Nothing is learnt yet: the step may be skipped.

        They may be masked already, unless `wants_whole_gradients`. `scale`: the factor of a GradScaler that they
        still have, on their device. With `later` nobody knows it yet: `settle` follows. `learn` comes after both, once
        the optimizer uses them.
        """
        gradients = [(layer, one) for layer in layers if (one := layer.gradient) is not None]
        seen = Seen()
        if self.method.observes_at(clock):  # Copies, for entries outside the masks are lost next.
            seen.observed = {layer.name: unscaled(gradient, scale).clone() for layer, gradient in gradients}
        if self.is_due(clock) and self.method.grows_by_gradient:
            if later:
                seen.unscored = {layer.name: gradient.clone() for layer, gradient in gradients}
            else:
                seen.growth_costs = self._scored([layer for layer, _ in gradients], scale)
        return seen

    @torch.no_grad()
    def settle(self, seen: Seen, layers: Iterable[SparseLayer], scale: Tensor | None) -> None:
        """Remove a GradScaler's factor, or none, from what was seen of these layers before it was known."""
        found = [layer for layer in layers if layer.name in seen.observed or layer.name in seen.unscored]
        seen.observed |= {
            one.name: unscaled(seen.observed[one.name], scale) for one in found if one.name in seen.observed
        }
        gradients = {one.name: seen.unscored.pop(one.name) for one in found if one.name in seen.unscored}
        if gradients:
            costs = self._scored([layer for layer in found if layer.name in gradients], scale, gradients)
            seen.growth_costs = seen.growth_costs.adding(costs)

    @torch.no_grad()
    def learn(self, seen: Seen, layers: Iterable[SparseLayer], *, unless: Tensor | None = None) -> None:
        """Let the method observe the gradients seen of these layers, each once: the optimizer uses them.

        It has skipped its step where `unless`, a flag on the device (bool scalar), is set: then nothing is learnt.
        """
        for layer in layers:
            if layer.name in seen.observed:
                self._observe(layer, seen.observed.pop(layer.name), unless)
                if unless is not None:
                    seen.unless[layer.name] = unless

    def _observe(self, layer: SparseLayer, gradient: Tensor, unless: Tensor | None) -> None:
        if unless is None and not self.method.names_learnt:
            self.method.observe(layer, gradient)
            return
        named = self.method.learnt(layer)
        kinds, before = [_kind(one) for one in named], [] if unless is None else [one.clone() for one in named]
        self.method.observe(layer, gradient)
        learnt = self.method.learnt(layer)
        if kinds != [_kind(one) for one in learnt]:
            raise UserError(
                f"learnt of {type(self.method).__name__} names other tensors of {layer.name} after observe than "
                f"before: give it as many, of the same shapes and dtypes, from prepare on"
            )
        if unless is not None:
            copy_(learnt, before, where=unless)

    def after_step(self, clock: Clock, seen: Seen | None = None) -> ReallocationReport | None:
        """Reallocate if due, after the optimizer's step. `seen` is what `before_step` gave for the same clock."""
        self.method.after_step(self.masks, clock, self.seed)
        if self.method.reserve is not None:
            self.method.reserve.step(self.optimizers, {} if seen is None else seen.unless)
        if not self.is_due(clock):
            return None
        owed, self.owed = self.owed, None
        scored = seen if self.method.grows_by_gradient else self._scored_now()
        if owed is None or self.method.is_due(clock):
            return self(clock, scored)
        if not clock.ends_run:
            return self(owed.event, scored, now=clock)
        if not self.method.changes_density(owed.event):
            return None  # What grows after the last step would never train.
        self.method.at_rest = True
        try:
            return self(owed.event, scored, now=clock)
        finally:
            self.method.at_rest = False

    def after_skipped_step(self, clock: Clock) -> ReallocationReport | None:
        """Reallocate if due, after a step that the optimizer skipped.

        Not by its gradients, which are of no use: a method that grows by them does so after the next step.
        """
        if not self.is_due(clock):
            return None
        if not self.method.grows_by_gradient:
            return self(clock, self._scored_now())
        event = clock if self.owed is None else self.owed.event
        if self.method.changes_density(clock) or (self.method.is_due(clock) and not self.method.changes_density(event)):
            event = clock
        self.owed = Owed(event, clock.step + 1)
        if clock.ends_run and self.method.changes_density(event):
            log.warning(
                "step %d, the last of the run, was skipped, and with it the change of density of step %d: masks stay "
                "as they are",
                clock.step,
                event.step,
            )
        return None

    def _scored_now(self) -> Seen:
        """Growth scores of a method that needs no gradients of the very step."""
        return Seen(growth_costs=self._scored(self.masks))

    def _scored(
        self,
        layers: Iterable[SparseLayer],
        scale: Tensor | None = None,
        gradients: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Costs:
        """Negated growth scores of these layers, which stay on a GPU as far as there is room."""
        on_gpu = any(layer.parameter.is_cuda for layer in self.masks)
        draws, in_parts = self.method.soft_growth > 0, self.method.works_in_parts
        stays = staying(self.masks, draws=draws, in_parts=in_parts) if on_gpu else set[str]()
        return growth_costs(self.method, layers, stays, scale, gradients)

    @torch.no_grad()
    def __call__(self, clock: Clock, seen: Seen | None = None, *, now: Clock | None = None) -> ReallocationReport:
        """Reallocate once. Linear in the active weights, of large layers on a GPU in all; 48 bytes a layer travel.

        `now`: the time, where the event of `clock` comes later than it was due.
        """
        began, now = time.monotonic(), now or clock
        repaired = self.verify(now.step)
        if repaired and seen and not self.method.grows_by_gradient:
            seen = self._scored_now()  # What it was scored by may have been repaired.
        scored = seen.growth_costs if seen else Costs()
        self.method.resting, self.method.lacking = self._resting(now, scored)
        self._settle(clock)
        costs = self._excluded(scored)
        scores, draws = self._drop_scores(clock), self._growth_draws(clock, costs)
        encoded = self._plan(clock, scores, draws).encode() if self._decides else Plan.blank(len(self.masks))
        plan = Plan.decode(sync.broadcast_(encoded, self.group))
        scalars = dict(self.method.scalars())
        changes = plan.changes(self.masks)
        self.apply(plan, scores, costs, draws)
        repaired += self._agree([layer.name for layer in self.masks], lambda: digest.mask_rows(self.masks), now.step)
        self.masks.check_budget()
        self.method.after(changes)
        return ReallocationReport(
            step=now.step,
            epoch=now.epoch,
            dropped={change.name: change.dropped * change.unit_size for change in changes},
            grown={change.name: change.grown * change.unit_size for change in changes},
            active={layer.name: layer.active_weights for layer in self.masks},
            scalars=scalars,
            explored=self.masks.explored(),
            repaired=tuple(repaired),
            seconds=time.monotonic() - began,
        )

    def _resting(self, clock: Clock, costs: Mapping[str, Scores]) -> tuple[frozenset[str], frozenset[str]]:
        """Layers that rest, and those of them that only lack a gradient on some rank, where growth goes by it."""
        resting = frozenset({layer.name for layer in self.masks if not layer.parameter.requires_grad} | self.untrained)
        if not self.method.grows_by_gradient:
            return resting, frozenset()
        lacking = torch.tensor([int(layer.name not in costs) for layer in self.masks])
        lacks = sync.largest_(lacking, self.group).tolist()
        without = {layer.name for layer, one in zip(self.masks, lacks, strict=True) if one}
        if names := sorted(without - resting):
            log.warning(
                "no gradient reached %s in step %d: its weights stay where they are", ", ".join(names), clock.step
            )
        return resting | without, frozenset(without - resting)

    def _drop_scores(self, clock: Clock) -> Sequence[Scores]:
        """Float [active units] for each layer, the lowest to fall; the same on every rank.

        Those of a large network on a GPU are made anew whenever they are read. A reserve changes under them as units
        move: then all are made at once.
        """
        made = MadeAnew(lambda i: self._drop_scores_of(self.masks.layers[i], clock), len(self.masks))
        large = self._is_large(sum(layer.active_units for layer in self.masks))
        return made if large and self.method.reserve is None else list(made)

    def _drop_scores_of(self, layer: SparseLayer, clock: Clock) -> Scores:
        scores = drop_scores(self.method, layer)
        if not (power := self.method.soft_drop_at(clock)):
            return scores
        return soft_order(whole(scores), power, seed_for(self.seed, clock.step, "soft drop", layer.name))

    def _growth_draws(self, clock: Clock, costs: Costs) -> Costs:
        """Costs of growth by layer, float [units], the lowest to grow, inf where active: as scored, or drawn softly."""
        if not (power := self.method.soft_growth):
            return costs

        def drawn(name: str, cost: Scores) -> Tensor:
            return soft_costs(sharpened(-whole(cost), power), seed_for(self.seed, clock.step, "soft growth", name))

        return self._excluded(costs.then(drawn))

    def _excluded(self, costs: Costs) -> Costs:
        """Give units that cannot grow an infinite cost: active ones, and those that the method has closed.

        Those of a large network on a GPU are made anew whenever they are read, all others once.
        """
        layers = {layer.name: layer for layer in self.masks}
        found = costs.then(lambda name, cost: excluded(self.method, layers[name], cost))
        return found if self._is_large(sum(layers[name].spec.units for name in costs)) else found.held()

    def _is_large(self, numbers: int) -> bool:
        """Whether so many doubles are more than a GPU may keep in an event."""
        return are_many(numbers) and any(layer.parameter.is_cuda for layer in self.masks)

    def _settle(self, clock: Clock) -> None:
        """Let all ranks follow what the method decides on rank 0, if it decides more than a plan holds."""
        if not (size := self.method.decision_bytes):
            return
        mine = self.method.decide(clock, self.method.resting) if self._decides else torch.empty(size, dtype=torch.uint8)
        self.method.follow(sync.broadcast_(mine, self.group))

    @property
    def _decides(self) -> bool:
        return sync.rank(self.group) == 0

    @torch.no_grad()
    def plan(self, clock: Clock, seen: Seen | None = None) -> Plan:
        """Decide, without changing masks or weights."""
        costs = self._excluded(seen.growth_costs if seen else Costs())
        self.method.resting = self.method.lacking = frozenset()
        return self._plan(clock, self._drop_scores(clock), self._growth_draws(clock, costs))

    def _plan(self, clock: Clock, scores: Sequence[Scores], costs: Mapping[str, Scores]) -> Plan:
        planner = Planner(self.masks, self.method)
        return planner.plan(clock, scores, costs, seed_for(self.seed, clock.step))

    @torch.no_grad()
    def apply(
        self,
        plan: Plan,
        scores: Sequence[Scores] | None = None,
        costs: Costs | None = None,
        draws: Costs | None = None,
    ) -> None:
        """Carry out a plan on this rank's masks, weights and optimizer state.

        `scores`: the drop scores, where known; a draw whose softness changes with time needs them. `costs`: negated
        growth scores, if any, inf at units that cannot grow. `draws`: the costs that the plan was made with, where they
        are others.
        """
        costs = costs or Costs()
        applier = Applier(self.masks, self.method, self.optimizers, costs, draws or costs)
        applier.apply(plan, self._drop_scores(Clock(plan.step, 0)) if scores is None else scores)

    @torch.no_grad()
    def verify(self, step: int | None = None) -> list[str]:
        """Prove that all ranks hold the same masks and weights, those in reserve too, to the bit.

        On a mismatch `abort` raises DesyncError on every rank, naming the layers; `repair` gives all ranks rank 0's
        state and returns the names.
        """
        names = [f"{layer.name} (mask)" for layer in self.masks]
        names += digest.shared_parameters(self.model)
        reserve = self.method.reserve
        names += [f"{name} (reserve)" for name in (reserve.layers if reserve else ())]

        def rows() -> Tensor:
            weights = digest.weight_rows(self.model, self.masks)
            return digest.all_rows((digest.mask_rows(self.masks), weights, digest.reserve_rows(reserve)))

        return self._agree(names, rows, step)

    def _agree(self, names: Sequence[str], rows: Callable[[], Tensor], step: int | None) -> list[str]:
        """Compare the checksums `rows()`, int64 [names], with those of the other ranks, if there are any."""
        if not sync.connected(self.group):
            return []
        differing = agreement.all_agree(names, rows(), self.group)
        if not differing:
            return []
        where = f"ranks differ{'' if step is None else f' at step {step}'} in {', '.join(differing)}"
        if self.on_desync == "abort":
            raise DesyncError(
                f"{where}; masks and weights must be equal on all ranks; resume from a checkpoint; ranks that train "
                f"models of their own need a process_group each"
            )
        log.warning("%s; repaired from rank 0", where)
        state = agreement.repair(self.model, self.masks, self.optimizers, self.method.state_dict(), self.group)
        self.method.load_state_dict(state)
        return differing


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype
