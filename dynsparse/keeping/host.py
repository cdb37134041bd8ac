"""Keep small tensors of the host on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def on_the_host(act: Callable[P, T]) -> Callable[P, T]:
    """Let `act` make its small tensors on the CPU, whatever `torch.set_default_device` says."""

    @wraps(act)
    def within(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.get_default_device().type == "cpu":
            return act(*args, **kwargs)
        with torch.device("cpu"):
            return act(*args, **kwargs)

    return within
