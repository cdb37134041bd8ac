"""The groups of channels of a network as plain data, found without its weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from dynsparse.errors import UserError
from dynsparse.masks import naming
from dynsparse.masks.channels import ChannelGroup, Lines
from dynsparse.shrinking.groups import Graph, Side, pruning_library


def channel_groups(
    model: nn.Module, input_shape: Sequence[int], needed_by: str, *, limited: bool = False
) -> list[ChannelGroup]:
    """Find which channels of a model go together. It stays as it is: a copy on the meta device is traced.

    `input_shape`: of one input, without the batch. `limited`: as in `Graph`, for a process without other threads.
    UserError where torch-pruning is not installed or cannot follow.
    """
    pruning_library(needed_by)
    try:
        twin = without_weights(model).eval()
    except Exception as error:  # Modules may hold anything.
        raise UserError(f"{needed_by} copies the model to trace it, and it cannot be copied: {error}") from error
    try:
        groups = list(Graph(twin, torch.empty(2, *input_shape, device="meta"), limited=limited))
    except UserError as error:
        raise UserError(f"{needed_by} must know which channels go together: {error}") from error
    return [
        ChannelGroup(_plain(group.root), group.size, _lines(group.writers), _lines(group.readers), group.obstacle)
        for group in groups
    ]


def without_weights(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device. No weight takes memory."""
    memo: dict[int, object] = {}
    for one in model.parameters():
        memo[id(one)] = nn.Parameter(torch.empty_like(one, device="meta"))
    for other in model.buffers():
        memo[id(other)] = torch.empty_like(other, device="meta")
    return copy.deepcopy(naming.unwrapped(model), memo)


def _lines(sides: Sequence[Side]) -> list[Lines]:
    return [Lines(f"{_plain(side.name)}.weight", side.places, side.channels) for side in sides]


def _plain(name: str) -> str:
    return naming.plain_name(name)
