"""One reallocation: plan -> broadcast -> apply -> verify -> report.

Rank 0 scores the active units and turns the scores into a plan of a few numbers
a layer. Every rank carries the plan out on its own copy of the same weights,
exactly, so that masks agree without ever being sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn, optim

from dynsparse.distributed import digest, sync
from dynsparse.errors import DesyncError, UserError
from dynsparse.masks import MaskSet, SparseLayer, optimizer_state
from dynsparse.masks.allocation import share_out
from dynsparse.masks.block import Block, Moved
from dynsparse.masks.selection import NO_CUT, Cut, chosen, cuts_smallest
from dynsparse.methods import Clock, LayerChange, Method
from dynsparse.seeds import seed_for

log = logging.getLogger(__name__)
OnDesync = Literal["abort", "repair"]


@dataclass(frozen=True)
class LayerPlan:
    """What to do with one layer."""

    drop: Cut
    """Over the drop scores of the active units."""
    grow: Cut
    """Over the negated growth scores of the free units; with random growth only `count` holds."""


@dataclass(frozen=True)
class Plan:
    """What rank 0 decided for one reallocation, in the order of the layers."""

    step: int
    seed: int
    budget: int
    """Active weights from now on."""
    layers: tuple[LayerPlan, ...]

    def encode(self) -> Tensor:
        """float64 [1 + layers, 6] on the CPU: exact for float32 thresholds and integers below 2^53."""
        seed = (float(self.seed >> 32), float(self.seed & 0xFFFFFFFF))
        rows = [[float(self.step), *seed, float(self.budget), 0.0, 0.0]]
        for layer in self.layers:
            rows.append([float(v) for cut in (layer.drop, layer.grow) for v in (cut.threshold, cut.ties, cut.count)])
        return torch.tensor(rows, dtype=torch.float64)

    def changes(self, masks: MaskSet) -> list[LayerChange]:
        """What the plan does to the layers as they are now, before it is applied."""
        return [
            _change(layer, decided.drop.count, decided.grow.count)
            for layer, decided in zip(masks, self.layers, strict=True)
        ]

    @classmethod
    def decode(cls, encoded: Tensor) -> Plan:
        """The inverse of `encode`."""
        (step, high, low, budget, *_), *rows = encoded.tolist()
        layers = tuple(
            LayerPlan(Cut(row[0], int(row[1]), int(row[2])), Cut(row[3], int(row[4]), int(row[5]))) for row in rows
        )
        return cls(int(step), (int(high) << 32) | int(low), int(budget), layers)


@dataclass(frozen=True)
class ReallocationReport:
    """What one reallocation did, in weights."""

    step: int
    epoch: int
    dropped: Mapping[str, int]
    grown: Mapping[str, int]
    active: Mapping[str, int]
    scalars: Mapping[str, float]
    """The method's numbers that this event was decided with, such as the threshold."""
    explored: Mapping[str, float]
    """Share of each layer's positions that were ever active."""
    repaired: tuple[str, ...] = ()
    """Layers that differed between ranks and were mended."""
    seconds: float = field(default=0.0, compare=False)
    """That the host spent on it, from the first check of digests to the last."""


@dataclass
class Seen:
    """Facts of a step's gradients that are lost when they are masked. Nothing is learnt from them yet."""

    observed: dict[str, Tensor] = field(default_factory=dict)
    """Copies of whole gradients by layer, for a method that observes them."""
    growth_costs: dict[str, Tensor] = field(default_factory=dict)
    """Float [units] by layer: the negated growth scores. The cheapest units grow first."""

    def add(self, other: Seen) -> None:
        """Take over what was seen of other layers."""
        self.observed |= other.observed
        self.growth_costs |= other.growth_costs

    def keep(self, names: Container[str]) -> None:
        """Forget all layers but these: the gradients of the others are gone."""
        self.observed = {name: value for name, value in self.observed.items() if name in names}
        self.growth_costs = {name: value for name, value in self.growth_costs.items() if name in names}


@dataclass(frozen=True)
class Growth:
    """The rules of one event's growth."""

    costs: Mapping[str, Tensor] = field(default_factory=dict)
    """Float [units] by layer that grows by score, infinite where a unit is active. Others grow at random."""
    resting: Set[str] = frozenset()
    """Layers in which nothing moves."""


class Reallocator:
    """Carries out a method's decisions. The same object, with the same state, on every rank."""

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

    def is_due(self, clock: Clock) -> bool:
        return len(self.masks) > 0 and self.method.is_due(clock)

    def wants_whole_gradients(self, clock: Clock) -> bool:
        """Whether the gradients of the step that ends at `clock` matter outside the masks too."""
        return len(self.masks) > 0 and self.method.wants_whole_gradients(clock)

    @torch.no_grad()
    def before_step(self, clock: Clock) -> Seen:
        """Between backward and the optimizer's step number `clock.step`: look at the gradients, learn, mask them."""
        seen = self.look(clock, self.masks)
        self.masks.mask_gradients()
        self.learn(seen, self.masks)
        return seen

    @torch.no_grad()
    def look(self, clock: Clock, layers: Iterable[SparseLayer], *, scale: Tensor | None = None) -> Seen:
        """Look at the gradients of some layers before they are masked.

        They may be masked already where `wants_whole_gradients` says no. `scale`: the factor of a GradScaler, on their
        device, that they still have. `learn` follows once the optimizer uses them.
        """
        gradients = [(layer, layer.weight.grad) for layer in layers if layer.weight.grad is not None]
        seen = Seen()
        if self.method.observes:  # Copies, for what lies outside the masks is lost next.
            seen.observed = {layer.name: _true_size(gradient, scale).clone() for layer, gradient in gradients}
        if self.is_due(clock) and self.method.grows_by_gradient:
            seen.growth_costs = self._growth_costs([layer for layer, _ in gradients], scale)
        return seen

    @torch.no_grad()
    def learn(self, seen: Seen, layers: Iterable[SparseLayer]) -> None:
        """Let the method observe the gradients seen of these layers, each once: the optimizer uses them."""
        for layer in layers:
            if layer.name in seen.observed:
                self.method.observe(layer, seen.observed.pop(layer.name))

    def _growth_costs(self, layers: Iterable[SparseLayer], scale: Tensor | None = None) -> dict[str, Tensor]:
        """Costs of the layers' units, float [units] each, of those that grow by score."""
        scores = {layer.name: self.method.grow_scores(layer) for layer in layers}
        return {name: -_true_size(score, scale) for name, score in scores.items() if score is not None}

    def _exclude_active(self, costs: Mapping[str, Tensor]) -> None:
        """Let growth cost +inf where nothing can grow, which no cut reaches: with the masks as they are by now.

        All free units cost less, whatever their scores were: those without a number the most.
        """
        for layer in self.masks:
            if (mine := costs.get(layer.name)) is not None:
                most = torch.finfo(mine.dtype).max
                mine.nan_to_num_(most, most, -most).index_fill_(0, layer.active, float("inf"))

    def after_step(self, clock: Clock, seen: Seen | None = None) -> ReallocationReport | None:
        """After the optimizer's step, with the clock given to `before_step` and what it saw: reallocate if due."""
        self.method.after_step(self.masks, clock, self.seed)
        if not self.is_due(clock):
            return None
        return self(clock, (seen or Seen()) if self.method.grows_by_gradient else self._scored_now())

    def after_skipped_step(self, clock: Clock) -> ReallocationReport | None:
        """Reallocate if due after a step that the optimizer skipped, unless by gradients: those are of no use."""
        if not self.is_due(clock) or self.method.grows_by_gradient:
            return None
        return self(clock, self._scored_now())

    def _scored_now(self) -> Seen:
        """Growth scores of methods that need no gradients of the very step."""
        return Seen(growth_costs=self._growth_costs(self.masks))

    @torch.no_grad()
    def __call__(self, clock: Clock, seen: Seen | None = None) -> ReallocationReport:
        """Reallocate once. Linear in the active weights; traffic of 48 bytes a layer and a digest."""
        began = time.monotonic()
        repaired = self.verify(clock.step)
        costs = seen.growth_costs if seen else {}
        growth = Growth(costs, self._resting(clock, costs))
        self._exclude_active(costs)
        scores = self._drop_scores()
        plan = Plan.decode(sync.broadcast_(self._plan_or_blank(clock, scores, growth), self.group))
        scalars = dict(self.method.scalars())
        changes = plan.changes(self.masks)
        self.apply(plan, scores, costs)
        repaired += self._agree([layer.name for layer in self.masks], lambda: digest.mask_rows(self.masks), clock.step)
        self.masks.check_budget()
        self.method.after(changes)
        return ReallocationReport(
            step=clock.step,
            epoch=clock.epoch,
            dropped={change.name: change.dropped * change.unit_size for change in changes},
            grown={change.name: change.grown * change.unit_size for change in changes},
            active={layer.name: layer.active_weights for layer in self.masks},
            scalars=scalars,
            explored=self.masks.explored(),
            repaired=tuple(repaired),
            seconds=time.monotonic() - began,
        )

    def _resting(self, clock: Clock, costs: Mapping[str, Tensor]) -> set[str]:
        """Layers that were frozen, and where weights grow by gradients those that have none on some rank."""
        frozen = {layer.name for layer in self.masks if not layer.weight.requires_grad or layer.name in self.untrained}
        if not self.method.grows_by_gradient:
            return frozen
        lacking = torch.tensor([int(layer.name not in costs) for layer in self.masks])
        lacks = sync.largest_(lacking, self.group).tolist()
        without = {layer.name for layer, one in zip(self.masks, lacks, strict=True) if one}
        if names := sorted(without - frozen):
            log.warning(
                "no gradient reached %s in step %d: its weights stay where they are", ", ".join(names), clock.step
            )
        return frozen | without

    def _drop_scores(self) -> list[Tensor]:
        """Of each layer; the same on every rank."""
        return [self.method.drop_scores(layer) for layer in self.masks]

    def _plan_or_blank(self, clock: Clock, scores: Sequence[Tensor], growth: Growth) -> Tensor:
        """Rank 0's plan, encoded; elsewhere a buffer of its size to receive it."""
        if sync.rank(self.group) == 0:
            return self._plan(clock, scores, growth).encode()
        return torch.empty(1 + len(self.masks), 6, dtype=torch.float64)

    @torch.no_grad()
    def plan(self, clock: Clock, seen: Seen | None = None) -> Plan:
        """Decide, without changing masks or weights."""
        growth = Growth(seen.growth_costs if seen else {})
        self._exclude_active(growth.costs)
        return self._plan(clock, self._drop_scores(), growth)

    def _plan(self, clock: Clock, scores: Sequence[Tensor], growth: Growth) -> Plan:
        layers = list(self.masks)
        after = self.method.budgets(layers, clock)
        budget = self.masks.budget + sum(after) - sum(layer.active_weights for layer in layers)
        cuts = list(self.method.drop_cuts(scores, clock))
        for i in (i for i, layer in enumerate(layers) if layer.name in growth.resting):
            cuts[i] = NO_CUT
        if self.method.trades:
            drops = self._traded_drops(cuts, budget, growth.resting)
            grows = self._traded_growth(drops, budget, growth.resting)
        else:
            drops, grows = zip(*map(_own_moves, layers, cuts, after), strict=True)
        decided = zip(_with_counts(scores, cuts, drops), _growth_cuts(layers, grows, growth.costs), strict=True)
        rows = tuple(LayerPlan(drop, grow) for drop, grow in decided)
        return Plan(clock.step, seed_for(self.seed, clock.step), budget, rows)

    def _traded_drops(self, cuts: Sequence[Cut], budget: int, resting: Set[str]) -> Sequence[int]:
        """Units to drop in each layer where layers trade: no more than empties it, or than all can take up.

        A position dropped now may not grow now, so a nearly dense network can move no more than is free.
        """
        counts = [min(cut.count, layer.active_units - 1) for cut, layer in zip(cuts, self.masks, strict=True)]
        sizes = [layer.spec.unit_size for layer in self.masks]
        wanted = [count * size for count, size in zip(counts, sizes, strict=True)]
        room = sum(
            (layer.spec.units - layer.active_units) * layer.spec.unit_size
            for layer in self.masks
            if layer.name not in resting
        )
        most = room - (budget - self.masks.active_weights)  # What is left must reach the budget in places free before.
        return counts if sum(wanted) <= most else share_out(most, wanted, capacity=counts, unit_size=sizes)

    def _traded_growth(self, drops: Sequence[int], budget: int, resting: Set[str]) -> Sequence[int]:
        """Units that each layer grows, so that all of them reach `budget` weights: in the method's proportions."""
        changes = [_change(layer, drop) for layer, drop in zip(self.masks, drops, strict=True)]
        kept = sum(change.kept * change.unit_size for change in changes)
        return share_out(
            max(0, budget - kept),
            self.method.shares(changes),
            capacity=[0 if change.name in resting else change.room for change in changes],
            unit_size=[change.unit_size for change in changes],
        )

    @torch.no_grad()
    def apply(
        self, plan: Plan, scores: Sequence[Tensor] | None = None, costs: Mapping[str, Tensor] | None = None
    ) -> None:
        """Carry out a plan on this rank's masks, weights and optimizer state.

        `scores`: the drop scores where known. `costs`: those of growth that the plan was made with, if any.
        """
        scores = self._drop_scores() if scores is None else scores
        costs = costs or {}
        moved = [
            _move(block, decided, plan.seed, costs)
            for block, decided in self.masks.by_block(list(zip(scores, plan.layers, strict=True)))
        ]
        dropped = [units for part in moved for units in part.dropped]
        for layer, decided, units in zip(self.masks, plan.layers, dropped, strict=True):
            if units.numel() != decided.drop.count:  # No cut takes a NaN.
                raise UserError(
                    f"{layer.name} has weights that are no numbers at step {plan.step}: training has diverged; "
                    f"lower the learning rate, or resume from an earlier checkpoint"
                )
        grown = [units for part in moved for units in part.grown]
        self._begin(plan, grown)
        self._follow_in_optimizers(dropped, grown, costs)
        self.masks.budget = plan.budget

    def _follow_in_optimizers(
        self, dropped: Sequence[Tensor], grown: Sequence[Tensor], costs: Mapping[str, Tensor]
    ) -> None:
        """Clear the optimizers' state of what was dropped in each layer, begin that of what has grown."""
        for layer, gone, new in zip(self.masks, dropped, grown, strict=True):
            mine = costs.get(layer.name)
            gradients = None if mine is None else mine.index_select(0, new) / self.method.gain
            for optimizer in self.optimizers:
                optimizer_state.clear(optimizer, layer, gone)
                optimizer_state.begin(optimizer, layer, new, gradients)
        optimizer_state.forget_directions(self.optimizers)

    def _begin(self, plan: Plan, grown: Sequence[Tensor]) -> None:
        """Give the grown units (of each layer, int64) their first values, unless these are 0."""
        generator = torch.Generator()
        values = [
            self.method.begin(layer, units, generator.manual_seed(seed_for(plan.seed, "begin", layer.name)))
            for layer, units in zip(self.masks, grown, strict=True)
        ]
        given = [value.reshape(-1) for value in values if value is not None]
        if not given:
            return
        on_device = iter(
            torch.cat(given).to(self.masks.layers[0].weight.device).split([value.numel() for value in given])
        )
        for layer, units, value in zip(self.masks, grown, values, strict=True):
            if value is not None:
                layer.put_(layer.weight, units, next(on_device))

    @torch.no_grad()
    def verify(self, step: int | None = None) -> list[str]:
        """Prove that all ranks hold the same masks and weights, to the bit.

        On a mismatch `abort` raises DesyncError on every rank, naming the
        layers; `repair` gives all ranks rank 0's state and returns the names.
        """
        names = [f"{layer.name} (mask)" for layer in self.masks]
        names += digest.shared_parameters(self.model)

        def rows() -> Tensor:
            return torch.cat((digest.mask_rows(self.masks), digest.weight_rows(self.model, self.masks)))

        return self._agree(names, rows, step)

    def _agree(self, names: Sequence[str], rows: Callable[[], Tensor], step: int | None) -> list[str]:
        """Compare the checksums `rows()`, int64 [names], with the other ranks', if there are any."""
        if not sync.connected(self.group):
            return []
        differing = sync.all_agree(names, rows(), self.group)
        if not differing:
            return []
        where = f"ranks differ{'' if step is None else f' at step {step}'} in {', '.join(differing)}"
        if self.on_desync == "abort":
            raise DesyncError(
                f"{where}; masks and weights must be equal on all ranks; resume from a checkpoint; ranks that train "
                f"models of their own need a process_group each"
            )
        log.warning("%s; repaired from rank 0", where)
        state = sync.repair(self.model, self.masks, self.optimizers, self.method.state_dict(), self.group)
        self.method.load_state_dict(state)
        return differing


def _true_size(values: Tensor, scale: Tensor | None) -> Tensor:
    """Without the factor of a GradScaler."""
    return values if scale is None else values / scale


def _own_moves(layer: SparseLayer, cut: Cut, budget: int) -> tuple[int, int]:
    """Units to drop and to grow in a layer that is to have `budget` weights, whatever the others do.

    What is dropped now may not grow now: where too little is free to take up what the cut drops, less moves.
    """
    units = budget // layer.spec.unit_size
    least, most = layer.active_units - units, min(layer.active_units - 1, layer.spec.units - units)
    dropped = max(0, least, min(cut.count, most))
    return dropped, units - layer.active_units + dropped


def _with_counts(scores: Sequence[Tensor], cuts: Sequence[Cut], counts: Sequence[int]) -> list[Cut]:
    """The cuts, and where another count is to be taken, cuts that take as many of the lowest scores."""
    result = list(cuts)
    others = [i for i, (cut, count) in enumerate(zip(cuts, counts, strict=True)) if count != cut.count]
    exact = cuts_smallest([scores[i] for i in others], [counts[i] for i in others])
    for i, cut in zip(others, exact, strict=True):
        result[i] = cut
    return result


def _growth_cuts(layers: Sequence[SparseLayer], grows: Sequence[int], costs: Mapping[str, Tensor]) -> list[Cut]:
    """A cut for each layer, over the costs of its free units; of one that grows at random only the count holds."""
    cuts = [replace(NO_CUT, count=count) for count in grows]
    scored = [i for i, layer in enumerate(layers) if layer.name in costs]
    exact = cuts_smallest([costs[layers[i].name] for i in scored], [grows[i] for i in scored])
    for i, cut in zip(scored, exact, strict=True):
        cuts[i] = cut
    return cuts


def _move(block: Block, decided: Sequence[tuple[Tensor, LayerPlan]], seed: int, costs: Mapping[str, Tensor]) -> Moved:
    """Carry out a block's part of a plan, given each layer's drop scores and the costs of growth."""
    gone = torch.cat([chosen(scores, plan.drop) for scores, plan in decided])
    layers = [(layer, plan.grow) for layer, (_, plan) in zip(block.layers, decided, strict=True)]
    at_random = [0 if layer.name in costs else cut.count for layer, cut in layers]
    seeds = [seed_for(seed, layer.name) for layer in block.layers]
    return block.move(gone, at_random, seeds, _scored(layers, costs))


def _scored(layers: Sequence[tuple[SparseLayer, Cut]], costs: Mapping[str, Tensor]) -> Tensor | None:
    """Units that grow by score, numbered through a block's layers: int64, rising. None without scores."""
    if not costs:
        return None
    flags = [
        chosen(costs[layer.name], cut)
        if layer.name in costs
        else torch.zeros(layer.spec.units, dtype=torch.bool, device=layer.weight.device)
        for layer, cut in layers
    ]
    return torch.nonzero(torch.cat(flags)).squeeze(1)


def _change(layer: SparseLayer, dropped: int, grown: int = 0) -> LayerChange:
    return LayerChange(layer.name, layer.spec.units, layer.spec.unit_size, layer.active_units, dropped, grown)
