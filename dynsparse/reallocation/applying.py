"""Carry out a plan on one rank: masks, weights and optimizer state. No rank is asked anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, optim

from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, SparseLayer, optimizer_state
from dynsparse.masks.block import Block, Moved
from dynsparse.masks.regrouping import Wish
from dynsparse.masks.selection import NO_CUT, Cut, chosen
from dynsparse.masks.structure import FREE
from dynsparse.methods import Method
from dynsparse.reallocation.plan import LayerPlan, Plan
from dynsparse.reallocation.structured import structured_moves
from dynsparse.seeds import seed_for


@dataclass(frozen=True)
class Applier:
    """Applies plans to the masks of one model."""

    masks: MaskSet
    method: Method
    optimizers: Sequence[optim.Optimizer]
    growth_costs: Mapping[str, Tensor]
    """Negated growth scores by layer, float [units], inf at active units. Layers without any grow at random."""
    draws: Mapping[str, Tensor]
    """The costs of growth that the plan was made with: these scores, or a soft draw by them."""

    def apply(self, plan: Plan, scores: Sequence[Tensor]) -> None:
        """Drop, then grow, given the drop scores of each layer. UserError for weights that are NaN."""
        by_block = self.masks.by_block(list(zip(scores, plan.layers, strict=True)))
        moved = [self._move(block, decided, plan.seed) for block, decided in by_block]
        dropped = [units for part in moved for units in part.dropped]
        self._require_numbers(plan, dropped)
        grown = [units for part in moved for units in part.grown]
        self._begin_weights(plan, grown)
        self._follow_in_optimizers(dropped, grown)
        self.masks.budget = plan.budget

    def _require_numbers(self, plan: Plan, dropped: Sequence[Tensor]) -> None:
        for layer, decided, units in zip(self.masks, plan.layers, dropped, strict=True):
            if units.numel() != decided.drop.count:  # No cut takes a NaN.
                raise UserError(
                    f"{layer.name} has weights that are NaN at step {plan.step}: training has diverged; "
                    f"lower the learning rate, or resume from an earlier checkpoint"
                )

    def _move(self, block: Block, decided: Sequence[tuple[Tensor, LayerPlan]], seed: int) -> Moved:
        """Carry out the part of one block, given each layer's drop scores and decision."""
        layers = [(layer, *of_layer) for layer, of_layer in zip(block.layers, decided, strict=True)]
        structured = self._structured(layers, seed)
        gone = [
            structured[layer.name][0] if layer.name in structured else chosen(scores, plan.drop)
            for layer, scores, plan in layers
        ]
        grown = {name: flags for name, (_, flags) in structured.items()}
        at_random = [0 if layer.name in {**self.draws, **grown} else plan.grow.count for layer, _, plan in layers]
        seeds = [seed_for(seed, layer.name) for layer in block.layers]
        scored = self._scored([(layer, plan.grow) for layer, _, plan in layers], grown)
        return block.move(torch.cat(gone), at_random, seeds, scored)

    def _structured(
        self, layers: Sequence[tuple[SparseLayer, Tensor, LayerPlan]], seed: int
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Find what layers with a structure drop, bool [active units], and grow, bool [units]: as rank 0 did."""
        wishes = [
            Wish(
                layer,
                scores,
                self.draws.get(layer.name),
                units=int(plan.grow.threshold),
                dropped=int(plan.drop.threshold),
                seed=seed_for(seed, layer.name),
            )
            for layer, scores, plan in layers
            if layer.spec.structure != FREE and plan.drop != NO_CUT  # A layer that rests has none.
        ]
        names = [wish.layer.name for wish in wishes]
        return dict(zip(names, structured_moves(self.method, wishes), strict=True))

    def _scored(self, layers: Sequence[tuple[SparseLayer, Cut]], given: Mapping[str, Tensor]) -> Tensor | None:
        """Units that grow by score, int64, rising, numbered through the layers of a block. None: all grow at random.

        `given` marks those of layers with a structure, bool [units].
        """
        if not self.draws and not given:
            return None
        flags = [self._grown(layer, cut, given.get(layer.name)) for layer, cut in layers]
        return torch.nonzero(torch.cat(flags)).squeeze(1)

    def _grown(self, layer: SparseLayer, cut: Cut, given: Tensor | None) -> Tensor:
        """Mark the units of a layer that grow other than at random: bool [units]."""
        if given is not None:
            return given
        if layer.name in self.draws:
            return chosen(self.draws[layer.name], cut)
        return torch.zeros(layer.spec.units, dtype=torch.bool, device=layer.device)

    def _begin_weights(self, plan: Plan, grown: Sequence[Tensor]) -> None:
        """Give the units that have grown in each layer (int64) their first values, unless these are 0."""
        generator = torch.Generator()
        values = [
            self.method.begin(layer, units, generator.manual_seed(seed_for(plan.seed, "begin", layer.name)))
            for layer, units in zip(self.masks, grown, strict=True)
        ]
        given = [value.reshape(-1) for value in values if value is not None]
        if not given:
            return
        # One copy to the device for all layers.
        on_device = torch.cat(given).to(self.masks.layers[0].device).split([one.numel() for one in given])
        parts = iter(on_device)
        for layer, units, value in zip(self.masks, grown, values, strict=True):
            if value is not None:
                layer.put_(layer.weight, units, next(parts))

    def _follow_in_optimizers(self, dropped: Sequence[Tensor], grown: Sequence[Tensor]) -> None:
        """Clear the optimizers' state of the units dropped in each layer, begin that of the units grown."""
        for layer, gone, new in zip(self.masks, dropped, grown, strict=True):
            costs = self.growth_costs.get(layer.name)
            gradients = None if costs is None else costs.index_select(0, new) / self.method.gain
            for optimizer in self.optimizers:
                optimizer_state.clear(optimizer, layer, gone)
                optimizer_state.begin(optimizer, layer, new, gradients)
        optimizer_state.forget_directions(self.optimizers)
