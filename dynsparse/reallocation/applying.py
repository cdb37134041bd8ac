"""Carry out a plan on one rank: masks, weights and optimizer state. No rank is asked anything.

One block of layers comes after the other, and only its intermediates are in memory. The host learns the numbers of all
blocks together: how often it waits for a GPU does not grow with the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, optim

from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, SparseLayer, optimizer_state
from dynsparse.masks.block import Block, Known
from dynsparse.masks.drawing import Repeats, Rounds, foreseen
from dynsparse.masks.made import MadeAnew
from dynsparse.masks.parted import Parted, Scores, whole
from dynsparse.masks.parted_drawing import PartedDraw
from dynsparse.masks.regrouping import Wish
from dynsparse.masks.selection import NO_CUT, chosen
from dynsparse.masks.structure import FREE
from dynsparse.masks.tensors import sent
from dynsparse.methods import Method
from dynsparse.reallocation.choice import Choice
from dynsparse.reallocation.parted_choice import PartedChoice
from dynsparse.reallocation.plan import LayerPlan, Plan
from dynsparse.reallocation.structured import structured_moves
from dynsparse.seeds import seed_for

AnyChoice = Choice | PartedChoice


@dataclass(frozen=True)
class Applier:
    """Applies plans to the masks of one model."""

    masks: MaskSet
    method: Method
    optimizers: Sequence[optim.Optimizer]
    growth_costs: Mapping[str, Scores]
    """Negated growth scores by layer, float [units], inf at active units. Layers without any grow at random."""
    draws: Mapping[str, Scores]
    """The costs of growth that the plan was made with: these scores, or a soft draw by them."""

    def apply(self, plan: Plan, scores: Sequence[Scores]) -> None:
        """Drop, then grow, given the drop scores of each layer. UserError for weights or scores that are NaN."""
        parts = list(self.masks.by_block(list(enumerate(plan.layers))))
        choices: Sequence[AnyChoice] = MadeAnew(lambda k: self._choice(plan.seed, *parts[k], scores), len(parts))
        if len(parts) == 1 or not self.masks.layers[0].parameter.is_cuda:
            choices = list(choices)
        numbers = self._numbers(plan, choices)
        if (reserve := self.method.reserve) is not None:
            reserve.open(self.optimizers)
        known = zip(choices, numbers, strict=True)
        found = [self._carry_out(plan.seed, choice, choice.known(*numbers)) for choice, numbers in known]
        if reserve is not None:
            reserve.close(self.optimizers)
        for (block, _), counts in zip(parts, _to_host(found), strict=True):
            block.note_explored(counts)
        optimizer_state.forget_directions(self.optimizers)
        self.masks.budget = plan.budget

    def _choice(
        self, seed: int, block: Block, decided: Sequence[tuple[int, LayerPlan]], scores: Sequence[Scores]
    ) -> AnyChoice:
        """Choose in one block, given each layer's number and decision."""
        layers = list[tuple[SparseLayer, Tensor, LayerPlan]]()
        for layer, (i, plan) in zip(block.layers, decided, strict=True):
            if isinstance(one := scores[i], Parted):
                assert len(block.layers) == 1, "a large layer is alone in its block"
                return PartedChoice(block, one, self._parted_draws(layer), plan, seed_for(seed, layer.name))
            layers.append((layer, one, plan))
        structured = self._structured(layers, seed)
        gone = [
            structured[layer.name][0] if layer.name in structured else chosen(scores, plan.drop)
            for layer, scores, plan in layers
        ]
        grown = [self._grown(layer, plan, structured) for layer, _, plan in layers]
        at_random = [plan.grow.count if flags is None else 0 for flags, (_, _, plan) in zip(grown, layers, strict=True)]
        seeds = [seed_for(seed, layer.name) for layer in block.layers]
        nans = [scores.isnan().count_nonzero() for _, scores, _ in layers]
        return Choice(block, gone, nans, grown, at_random, seeds, self.growth_costs)

    def _parted_draws(self, layer: SparseLayer) -> Parted | None:
        costs = self.draws.get(layer.name)
        assert costs is None or isinstance(costs, Parted), layer.name
        return costs

    def _grown(
        self, layer: SparseLayer, plan: LayerPlan, structured: Mapping[str, tuple[Tensor, Tensor]]
    ) -> Tensor | None:
        """Mark the units of a layer that grow other than at random: bool [units]. None: all do at random."""
        if layer.name in structured:
            return structured[layer.name][1]
        return chosen(whole(self.draws[layer.name]), plan.grow) if layer.name in self.draws else None

    def _structured(
        self, layers: Sequence[tuple[SparseLayer, Tensor, LayerPlan]], seed: int
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Find what layers with a structure drop, bool [active units], and grow, bool [units]: as rank 0 did."""
        wishes = [
            Wish(
                layer,
                scores,
                whole(self.draws[layer.name]) if layer.name in self.draws else None,
                units=int(plan.grow.threshold),
                dropped=int(plan.drop.threshold),
                seed=seed_for(seed, layer.name),
            )
            for layer, scores, plan in layers
            if layer.spec.structure != FREE and plan.drop != NO_CUT  # A layer that rests has none.
        ]
        names = [wish.layer.name for wish in wishes]
        return dict(zip(names, structured_moves(self.method, wishes), strict=True))

    def _numbers(
        self, plan: Plan, choices: Sequence[AnyChoice]
    ) -> list[tuple[Sequence[Sequence[int]], Repeats | None]]:
        """Learn what `Choice.known` needs for each block. A copy to the host, and one for each round of random draws.

        UserError for weights or scores that are NaN, before anything has moved.
        """
        looked = [(choice.counts(), choice.draw()) for choice in choices]
        counts = _to_host([one for one, _ in looked])
        self._require_numbers(plan, [n for one in zip(self.masks.blocks, counts, strict=True) for n in _sums(*one)])
        return list(zip(counts, self._repeats([draw for _, draw in looked]), strict=True))

    def _require_numbers(self, plan: Plan, found: Sequence[tuple[int, int]]) -> None:
        for layer, decided, (dropped, nans) in zip(self.masks, plan.layers, found, strict=True):
            if nans or dropped != decided.drop.count:
                raise UserError(_why_units_differ(layer, self.method, plan.step))

    def _repeats(self, draws: Sequence[Rounds]) -> Sequence[Repeats | None]:
        """Foresee the draws of all blocks together, where each would make the host wait for a GPU."""
        alone = len(draws) == 1 and not isinstance(draws[0], PartedDraw)
        if alone or not self.masks.layers[0].parameter.is_cuda:
            return [None] * len(draws)
        return foreseen(draws, self.masks.layers[0].device)

    def _carry_out(self, seed: int, choice: AnyChoice, known: Known) -> Tensor:
        """Move the units of one block. Returns how many of each layer were never active before: int64 [layers]."""
        moved, costs = choice.move(known)
        self._begin_weights(seed, choice.block.layers, moved.grown)
        changes = zip(choice.block.layers, moved.dropped, moved.grown, costs, strict=True)
        for layer, gone, new, cost in changes:
            gradients = None if cost is None else cost / self.method.gain
            for optimizer in self.optimizers:
                optimizer_state.clear(optimizer, layer, gone)
                optimizer_state.begin(optimizer, layer, new, gradients)
        return moved.explored

    def _begin_weights(self, seed: int, layers: Sequence[SparseLayer], grown: Sequence[Tensor]) -> None:
        """Give the units that have grown in each layer (int64) their first values, unless these are 0."""
        generator = torch.Generator()
        values = [
            self.method.begin(layer, units, generator.manual_seed(seed_for(seed, "begin", layer.name)))
            for layer, units in zip(layers, grown, strict=True)
        ]
        given = [value.reshape(-1) for value in values if value is not None]
        if not given:
            return
        # One copy to the device for all layers.
        on_device = sent(torch.cat(given), layers[0].device).split([one.numel() for one in given])
        parts = iter(on_device)
        for layer, units, value in zip(layers, grown, values, strict=True):
            if value is not None:
                layer.put_(layer.weight, units, next(parts))


def _why_units_differ(layer: SparseLayer, method: Method, step: int) -> str:
    """Say why drop scores take another number of units than the plan says."""
    if any(bool(piece.isnan().any()) for piece in layer.values_in_pieces(layer.weight)):
        return (
            f"{layer.name} has weights that are NaN at step {step}: training has diverged; lower the learning rate, or "
            f"resume from an earlier checkpoint"
        )
    return (
        f"drop_scores of {type(method).__name__} gives NaN for {layer.name} at step {step}, or other scores than for "
        f"the plan, and its weights are numbers: let it return the same numbers each time"
    )


def _sums(block: Block, counts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Sum up the units that each layer of a block loses, and scores that are NaN. A single layer has a row a part."""
    found = [(lost, nans) for lost, _, nans in counts]
    return [(sum(lost for lost, _ in found), sum(nans for _, nans in found))] if len(block.layers) == 1 else found


def _to_host(of_blocks: Sequence[Tensor]) -> list[list[Any]]:
    """Copy numbers of each block's layers or parts, [n, ...] each, to the host, all at once."""
    rows = iter(torch.cat(list(of_blocks)).tolist() if of_blocks else [])
    return [[next(rows) for _ in range(len(one))] for one in of_blocks]
