"""Masks of a network that has lost channels: the same active weights as far as they are there, and as many in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dynsparse.masks import LayerSpec, MaskSet, SparseLayer
from dynsparse.masks.allocation import share_out
from dynsparse.masks.drawing import draw_distinct, free_numbers, merge_sorted
from dynsparse.seeds import seed_for
from dynsparse.shrinking.kept import Kept, Shrinkage


@dataclass(frozen=True)
class ShrunkMasks:
    """Masks of the smaller network."""

    masks: MaskSet
    grown: Sequence[Tensor]
    """Units of each layer that have grown, at the value 0: int64, rising."""


def shrunk_masks(masks: MaskSet, model: nn.Module, shrinkage: Shrinkage, *, seed: int) -> ShrunkMasks:
    """Return the masks of a model that a shrink has been applied to, given those from before it.

    As many weights grow at random as went with their channels: in their own layer as far as it has room, else in the
    others in proportion to their room. Layers that are frozen take none. Where no room is left at all, the budget
    falls to what there is. What was ever active stays so, as far as it is there.
    """
    specs = [shrunk_spec(layer.spec, shrinkage) for layer in masks]
    left = [_units(layer.spec, layer.active, shrinkage.kept(layer.spec.parameter)) for layer in masks]
    counts = _growth(list(masks), specs, left)
    seeds = [seed_for(seed, "shrink", shrinkage.epoch, layer.name) for layer in masks]
    grown = [_drawn(*one) for one in zip(specs, left, counts, seeds, strict=True)]
    active = {s.name: merge_sorted(a, b) for s, a, b in zip(specs, left, grown, strict=True)}
    found = MaskSet(model, specs, active)
    for before, layer in zip(masks, found, strict=True):
        explored = _flags(before.spec, before.explored, shrinkage.kept(before.spec.parameter))
        layer.explored = explored.index_fill_(0, layer.active, True)
    largest = max((spec.unit_size for spec in specs), default=1)
    found.budget = masks.budget if masks.budget - found.active_weights < largest else found.active_weights
    return ShrunkMasks(found, grown)


def shrunk_spec(spec: LayerSpec, shrinkage: Shrinkage) -> LayerSpec:
    """Return the layer after a shrink."""
    kept = shrinkage.kept(spec.parameter)
    places = (kept.outputs, kept.inputs)
    sizes = [size if at is None else at.numel() for size, at in zip(spec.shape, places, strict=False)]
    return replace(spec, shape=(*sizes, *spec.shape[2:]))


def _flags(spec: LayerSpec, flags: Tensor, kept: Kept) -> Tensor:
    """Return what is left of a flag a unit: bool [units of the smaller layer]."""
    grid = flags.view(spec.shape[: spec.mask_dims])
    return kept.part(grid).flatten()


def _units(spec: LayerSpec, units: Tensor, kept: Kept) -> Tensor:
    """Return the numbers that units (int64, rising) have in the smaller layer, without those that are gone."""
    flags = torch.zeros(spec.units, dtype=torch.bool, device=units.device).index_fill_(0, units, True)
    return _flags(spec, flags, kept).nonzero().flatten()


def _growth(before: Sequence[SparseLayer], specs: Sequence[LayerSpec], left: Sequence[Tensor]) -> list[int]:
    """Return how many units each layer grows."""
    sizes = [spec.unit_size for spec in specs]
    room = [_room(layer, spec, kept) for layer, spec, kept in zip(before, specs, left, strict=True)]
    lost = [layer.active_weights - kept.numel() * size for layer, kept, size in zip(before, left, sizes, strict=True)]
    least = [max(0, 1 - kept.numel()) for kept in left]  # A layer keeps one, frozen or not.
    own = [max(few, min(most, gone // size)) for few, most, gone, size in zip(least, room, lost, sizes, strict=True)]
    rest = max(0, sum(lost) - sum(count * size for count, size in zip(own, sizes, strict=True)))
    room = [max(0, most - count) for most, count in zip(room, own, strict=True)]
    more = share_out(rest, [most * size for most, size in zip(room, sizes, strict=True)], room, sizes)
    return [count + extra for count, extra in zip(own, more, strict=True)]


def _room(layer: SparseLayer, spec: LayerSpec, left: Tensor) -> int:
    return spec.units - left.numel() if layer.parameter.requires_grad else 0


def _drawn(spec: LayerSpec, left: Tensor, count: int, seed: int) -> Tensor:
    """Draw so many free units: int64, rising."""
    ranks = draw_distinct([spec.units - left.numel()], [count], [seed], left.device)
    return free_numbers(left, ranks)
