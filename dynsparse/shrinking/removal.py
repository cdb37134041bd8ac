"""Removal of channels: the places that each module keeps, and a trial whether the network runs then."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dynsparse.shrinking.groups import Group, Side
from dynsparse.shrinking.kept import Kept, Shrinkage, sizes_of

STUCK = "the network cannot run without one of them"


def without(groups: Sequence[Group], gone: Sequence[Tensor]) -> dict[str, Kept]:
    """Return what each module keeps that changes, by name. `gone`: channels of each group, bool [size]."""
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for group, going in zip(groups, gone, strict=True):
        for found, sides in ((rows, [*group.writers, *group.followers]), (columns, group.readers)):
            for side in sides:
                _note(found, side, side.places[going[side.channels]], columns=found is columns)
    return {name: Kept(_kept(rows.get(name)), _kept(columns.get(name))) for name in {**rows, **columns}}


def tried(groups: Sequence[Group], model: nn.Module, images: Tensor) -> list[Group]:
    """Return the groups with an obstacle where the network cannot run without a channel, as where heads split them.

    It is tried on a copy on the meta device, which takes no memory. A network that does not run there as it is tells
    nothing: its groups stay as they are.
    """
    tensors: dict[int, Tensor] = {id(one): one.to("meta") for one in model.buffers()}
    for one in model.parameters():
        tensors[id(one)] = nn.Parameter(one.detach().to("meta"), one.requires_grad)
    whole, images = copy.deepcopy(model, tensors).eval(), images.to("meta")
    if not _runs(whole, images, []):
        return list(groups)
    free = [group for group in groups if not group.obstacle and group.size > group.least]
    stuck = {id(group) for group in _stuck(whole, images, free)}
    return [replace(group, obstacle=STUCK) if id(group) in stuck else group for group in groups]


def _stuck(model: nn.Module, images: Tensor, groups: Sequence[Group]) -> Sequence[Group]:
    """Find those that the network needs whole, by halves: most networks need none."""
    if not groups or _runs(model, images, groups):
        return []
    if len(groups) == 1:
        return groups
    half = len(groups) // 2
    found = [*_stuck(model, images, groups[:half]), *_stuck(model, images, groups[half:])]
    return found or groups


@torch.no_grad()
def _runs(model: nn.Module, images: Tensor, groups: Sequence[Group]) -> bool:
    """Whether the model runs without the first channel of each of the groups."""
    smaller = copy.deepcopy(model)
    try:
        Shrinkage(0, without(groups, [torch.arange(group.size) == 0 for group in groups])).apply(smaller)
        smaller(images)
    except Exception:  # noqa: BLE001 - networks of others raise about anything
        return False
    return True


def _note(found: dict[str, Tensor], side: Side, places: Tensor, *, columns: bool) -> None:
    """Mark places of a module's rows or columns as gone: bool, True for those that stay."""
    if places.numel():
        length = sizes_of(side.module)[1 if columns else 0]
        found.setdefault(side.name, torch.ones(length, dtype=torch.bool))[places] = False


def _kept(stays: Tensor | None) -> Tensor | None:
    return None if stays is None else stays.nonzero().flatten()
