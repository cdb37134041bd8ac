"""The first units by score, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dynsparse.distributed import sync
from dynsparse.first_masks.choosing import chosen_units, require_telling, unit_means
from dynsparse.first_masks.gradients import Derivatives, Example, Loss
from dynsparse.first_masks.settings import GraspMasks, ScoredMasks, SynflowMasks
from dynsparse.first_masks.synflow import synflow_units
from dynsparse.first_masks.untouched import untouched
from dynsparse.masks import LayerSpec
from dynsparse.masks.bits import pack_bits, unpack_bits


@dataclass(frozen=True)
class Scoring:
    """Everything that first masks by score follow from."""

    settings: ScoredMasks
    model: nn.Module
    """The dense network, without wrappers."""
    specs: Sequence[LayerSpec]
    counts: Mapping[str, int]
    """Units of each layer, by the allocation."""
    key: str
    """Name of the masks in messages."""
    examples: Callable[[], Sequence[Example]] = tuple
    """Returns this rank's batches. Not called by SynFlow."""
    loss: Loss | None = None
    shape: Sequence[int] = ()
    """Shape of one input, for SynFlow."""
    group: sync.Group = None

    def units(self) -> dict[str, Tensor]:
        """Return the first units of each layer: int64, rising, on the CPU. All ranks call it together.

        Rank 0 decides, and sends a bit a unit. The model is as before. UserError on all ranks at once.
        """
        if isinstance(self.settings, SynflowMasks):
            packed = sync.from_rank_0(lambda: self._packed(self._synflow()), self.group)
        else:
            values = self._values()
            packed = sync.from_rank_0(lambda: self._packed(self._by_cost(values)), self.group)
        return {spec.name: torch.nonzero(unpack_bits(packed[spec.name], spec.units)).squeeze(1) for spec in self.specs}

    @property
    def _counts(self) -> list[int]:
        return [self.counts[spec.name] for spec in self.specs]

    def _synflow(self) -> list[Tensor]:
        assert isinstance(self.settings, SynflowMasks)
        with torch.enable_grad():
            return synflow_units(self.settings, self.model, self.specs, self._counts, self.shape, self.key)

    def _by_cost(self, values: Mapping[str, Tensor]) -> Sequence[Tensor]:
        costs = [unit_means(spec, values[spec.parameter]) for spec in self.specs]
        require_telling(self.specs, costs, self.key)
        return chosen_units(self.specs, costs, self._counts, self.settings.scope, [spec.units for spec in self.specs])

    def _packed(self, units: Sequence[Tensor]) -> dict[str, Tensor]:
        """Units of each layer as one bit a unit, on the CPU."""
        flags = (torch.zeros(spec.units, dtype=torch.bool) for spec in self.specs)
        each = zip(self.specs, flags, units, strict=True)
        return {spec.name: pack_bits(none.index_fill_(0, one.cpu(), True)) for spec, none, one in each}

    def _values(self) -> dict[str, Tensor]:
        """Costs of all weights by parameter, float32: -|g w| for SNIP, -w (H g) for GraSP.

        SNIP: Lee, Ajanthan & Torr, "SNIP: single-shot network pruning based on connection sensitivity", ICLR 2019. Its
        scores are divided by their sum, which changes no rank. GraSP: Wang, Zhang & Grosse, "Picking winning tickets
        before training by preserving gradient flow", ICLR 2020: the highest -w (H g) are removed.

        Departures: whole batches, where GraSP takes 10 samples a class. Gradients are of the layers that are to be
        sparse. Linear layers keep their weights, where GraSP's code draws them anew.
        """
        assert self.loss is not None
        examples = sync.together(self.examples, self.group)
        at = Derivatives(self.model, self.specs, examples, self.loss, self.key)
        if not isinstance(self.settings, GraspMasks):
            with torch.enable_grad(), untouched(self.model):
                gradient = self._summed(at.gradient)
            return {name: _times(value, at.parameters[name]).abs_().neg_() for name, value in gradient.items()}
        at = replace(at, temperature=self.settings.temperature)
        with torch.enable_grad(), untouched(self.model):
            gradient = self._summed(at.gradient)
            product = self._summed(lambda: at.product(gradient))
        return {name: _times(value, at.parameters[name]).neg_() for name, value in product.items()}

    def _summed(self, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sum what each rank computes, as gradients are."""
        mine = sync.together(compute, self.group)
        return {name: sync.sum_(value.contiguous(), self.group) for name, value in mine.items()}


def _times(value: Tensor, weight: Tensor) -> Tensor:
    """Multiply by the weight in float32, in place if it is float32."""
    return value.float().mul_(weight.detach().float())
