"""One reallocation: plan -> broadcast -> apply -> verify -> report.

Rank 0 scores the active units and turns the scores into a plan of a few numbers
a layer. Every rank carries the plan out on its own copy of the same weights,
exactly, so that masks agree without ever being sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn, optim

from dynsparse.distributed import digest, sync
from dynsparse.errors import DesyncError, UserError
from dynsparse.masks import MaskSet, SparseLayer, optimizer_state
from dynsparse.masks.allocation import share_out
from dynsparse.masks.block import Block, Moved
from dynsparse.masks.selection import NO_CUT, Cut, chosen, cuts_smallest, seed_for
from dynsparse.methods import Clock, LayerChange, Method

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


class Reallocator:
    """Carries out a method's decisions. The same object, with the same state, on every rank."""

    def __init__(
        self,
        model: nn.Module,
        masks: MaskSet,
        method: Method,
        optimizer: optim.Optimizer,
        *,
        seed: int = 0,
        on_desync: OnDesync = "abort",
    ) -> None:
        self.model = model
        self.masks = masks
        self.method = method
        self.optimizer = optimizer
        self.seed = seed
        self.on_desync = on_desync
        self._growth_costs: dict[str, Tensor] = {}

    def is_due(self, clock: Clock) -> bool:
        return len(self.masks) > 0 and self.method.is_due(clock)

    def wants_whole_gradients(self, clock: Clock) -> bool:
        """Whether the gradients of the step that ends at `clock` matter outside the masks too."""
        return len(self.masks) > 0 and self.method.wants_whole_gradients(clock)

    @torch.no_grad()
    def before_step(self, clock: Clock, *, masked: bool = False) -> None:
        """Between backward and the optimizer's step number `clock.step`: look at the gradients, then mask them.

        They may be masked already where `wants_whole_gradients` says no.
        """
        self.method.observe(self.masks)
        if self.is_due(clock):
            self._score_growth()
        if self.wants_whole_gradients(clock) or not masked:
            self.masks.mask_gradients()

    def _score_growth(self) -> None:
        """Keep the cost of each layer's units, [units]."""
        self._growth_costs = {}
        for layer in self.masks:
            scores = self.method.grow_scores(layer)
            if scores is not None:
                self._growth_costs[layer.name] = -scores

    def _exclude_active(self) -> None:
        """Let growth cost +inf where nothing can grow, which no cut reaches: with the masks as they are by now."""
        for layer in self.masks:
            if layer.name in self._growth_costs:
                self._growth_costs[layer.name].index_fill_(0, layer.active, float("inf"))

    def after_step(self, clock: Clock) -> ReallocationReport | None:
        """After the optimizer's step, with the clock given to `before_step`: reallocate if due."""
        self.method.after_step(self.masks, clock, self.seed)
        return self(clock) if self.is_due(clock) else None

    def after_skipped_step(self, clock: Clock) -> ReallocationReport | None:
        """Instead of both where the optimizer made no step: reallocate if due, unless by gradients that are no use."""
        if not self.is_due(clock) or self.method.grows_by_gradient:
            return None
        self._score_growth()
        return self(clock)

    @torch.no_grad()
    def __call__(self, clock: Clock) -> ReallocationReport:
        """Reallocate once. Linear in the active weights; traffic of 48 bytes a layer and a digest."""
        began = time.monotonic()
        repaired = self.verify(clock.step)
        self._exclude_active()
        scores = self._drop_scores()
        plan = Plan.decode(sync.broadcast_(self._plan_or_blank(clock, scores)))
        scalars = dict(self.method.scalars())
        changes = plan.changes(self.masks)
        self.apply(plan, scores)
        repaired += self._agree([layer.name for layer in self.masks], lambda: digest.mask_rows(self.masks), clock.step)
        self.masks.check_budget()
        self.method.after(changes)
        self._growth_costs = {}
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

    def _drop_scores(self) -> list[Tensor]:
        """Of each layer; the same on every rank."""
        return [self.method.drop_scores(layer) for layer in self.masks]

    def _plan_or_blank(self, clock: Clock, scores: Sequence[Tensor]) -> Tensor:
        """Rank 0's plan, encoded; elsewhere a buffer of its size to receive it."""
        if sync.rank() == 0:
            return self._plan(clock, scores).encode()
        return torch.empty(1 + len(self.masks), 6, dtype=torch.float64)

    @torch.no_grad()
    def plan(self, clock: Clock) -> Plan:
        """Decide, without changing anything."""
        self._exclude_active()
        return self._plan(clock, self._drop_scores())

    def _plan(self, clock: Clock, scores: Sequence[Tensor]) -> Plan:
        layers = list(self.masks)
        budget = self.method.budget(self.masks.budget, clock)
        drops = self._within_limits(scores, self.method.drop_cuts(scores, clock), budget)
        changes = [_change(layer, drop.count) for layer, drop in zip(layers, drops, strict=True)]
        kept = sum(change.kept * change.unit_size for change in changes)
        grows = share_out(
            max(0, budget - kept),
            self.method.shares(changes),
            capacity=[change.room for change in changes],
            unit_size=[change.unit_size for change in changes],
        )
        cuts = self._growth_cuts(layers, grows)
        rows = tuple(LayerPlan(drop, grow) for drop, grow in zip(drops, cuts, strict=True))
        return Plan(clock.step, seed_for(self.seed, clock.step), budget, rows)

    def _within_limits(self, scores: Sequence[Tensor], cuts: Sequence[Cut], budget: int) -> list[Cut]:
        """Lower cuts that would empty a layer, or drop more than the free positions can take up.

        A position dropped now may not grow now, so a nearly dense network can
        move no more than is free. What is lowered keeps its largest scores.
        """
        specs = [layer.spec for layer in self.masks]
        counts = [min(cut.count, layer.active_units - 1) for cut, layer in zip(cuts, self.masks, strict=True)]
        most = self.masks.weights - budget  # What is left must reach the budget in the positions free before.
        if sum(count * spec.unit_size for count, spec in zip(counts, specs, strict=True)) > most:
            sizes = [spec.unit_size for spec in specs]
            wanted = [float(count * size) for count, size in zip(counts, sizes, strict=True)]
            counts = share_out(most, wanted, capacity=counts, unit_size=sizes)
        lowered = [i for i, (cut, count) in enumerate(zip(cuts, counts, strict=True)) if count < cut.count]
        exact = cuts_smallest([scores[i] for i in lowered], [counts[i] for i in lowered])
        result = list(cuts)
        for i, cut in zip(lowered, exact, strict=True):
            result[i] = cut
        return result

    def _growth_cuts(self, layers: Sequence[SparseLayer], grows: Sequence[int]) -> list[Cut]:
        cuts = [replace(NO_CUT, count=count) for count in grows]
        scored = [i for i, layer in enumerate(layers) if layer.name in self._growth_costs]
        costs = [self._growth_costs[layers[i].name] for i in scored]
        for i, cut in zip(scored, cuts_smallest(costs, [grows[i] for i in scored]), strict=True):
            cuts[i] = cut
        return cuts

    @torch.no_grad()
    def apply(self, plan: Plan, scores: Sequence[Tensor] | None = None) -> None:
        """Carry out a plan on this rank's masks, weights and optimizer state, given the drop scores where known."""
        scores = self._drop_scores() if scores is None else scores
        moved = [
            self._move(block, decided, plan.seed)
            for block, decided in self.masks.by_block(list(zip(scores, plan.layers, strict=True)))
        ]
        dropped = [units for part in moved for units in part.dropped]
        for layer, decided, units in zip(self.masks, plan.layers, dropped, strict=True):
            if units.numel() != decided.drop.count:  # No cut takes a NaN.
                raise UserError(
                    f"{layer.name} has weights that are no numbers at step {plan.step}: training has diverged; "
                    f"lower the learning rate, or resume from an earlier checkpoint"
                )
        for layer, units in zip(self.masks, dropped, strict=True):
            optimizer_state.clear(self.optimizer, layer, units)
        self._begin(plan, [units for part in moved for units in part.grown])
        self.masks.budget = plan.budget

    def _move(self, block: Block, decided: Sequence[tuple[Tensor, LayerPlan]], seed: int) -> Moved:
        """Carry out a block's part, given each layer's drop scores."""
        gone = torch.cat([chosen(scores, plan.drop) for scores, plan in decided])
        layers = [(layer, plan.grow) for layer, (_, plan) in zip(block.layers, decided, strict=True)]
        at_random = [0 if layer.name in self._growth_costs else cut.count for layer, cut in layers]
        seeds = [seed_for(seed, layer.name) for layer in block.layers]
        return block.move(gone, at_random, seeds, self._scored(layers))

    def _scored(self, layers: Sequence[tuple[SparseLayer, Cut]]) -> Tensor | None:
        """What grows by score: units numbered through a block's layers, int64, rising."""
        if not self._growth_costs:
            return None
        flags = [
            chosen(self._growth_costs[layer.name], cut)
            if layer.name in self._growth_costs
            else torch.zeros(layer.spec.units, dtype=torch.bool, device=layer.weight.device)
            for layer, cut in layers
        ]
        return torch.nonzero(torch.cat(flags)).squeeze(1)

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
        names += [name for name, _ in self.model.named_parameters()]

        def rows() -> Tensor:
            return torch.cat((digest.mask_rows(self.masks), digest.weight_rows(self.model, self.masks)))

        return self._agree(names, rows, step)

    def _agree(self, names: Sequence[str], rows: Callable[[], Tensor], step: int | None) -> list[str]:
        """Compare the checksums `rows()`, int64 [names], with the other ranks', if there are any."""
        if not sync.connected():
            return []
        differing = sync.all_agree(names, rows())
        if not differing:
            return []
        where = f"ranks differ{'' if step is None else f' at step {step}'} in {', '.join(differing)}"
        if self.on_desync == "abort":
            raise DesyncError(f"{where}; masks and weights must be equal on all ranks; resume from a checkpoint")
        log.warning("%s; repaired from rank 0", where)
        state = sync.repair(self.model, self.masks, self.optimizer, self.method.state_dict())
        self.method.load_state_dict(state)
        return differing


def _change(layer: SparseLayer, dropped: int, grown: int = 0) -> LayerChange:
    return LayerChange(layer.name, layer.spec.units, layer.spec.unit_size, layer.active_units, dropped, grown)
