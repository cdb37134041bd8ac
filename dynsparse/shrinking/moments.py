"""Optimizer state that follows parameters which have become smaller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim

from dynsparse.shrinking.kept import Kept


@torch.no_grad()
def follow(optimizer: optim.Optimizer, parameters: Mapping[nn.Parameter, tuple[nn.Parameter, Kept]]) -> None:
    """Give an optimizer the new parameters in the place of the old ones, with what is left of their state.

    Tensors of a parameter's shape lose its channels. Others, such as a count of steps, stay as they are.
    """
    for group in optimizer.param_groups:
        group["params"] = [parameters[one][0] if one in parameters else one for one in group["params"]]
    for old, (new, kept) in parameters.items():
        state = optimizer.state.pop(old, None)
        if state:
            optimizer.state[new] = {key: _left(value, old, new, kept) for key, value in state.items()}


def _left(value: Any, old: nn.Parameter, new: nn.Parameter, kept: Kept) -> Any:
    if not isinstance(value, Tensor) or value.shape != old.shape or value.dim() == 0:
        return value
    return torch.empty_like(new, dtype=value.dtype, requires_grad=False).copy_(kept.part(value))
