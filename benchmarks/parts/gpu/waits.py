"""Waits of the host for the GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Reads(TorchFunctionMode):
    """A count of calls that make the host wait on a GPU, as far as it can be told without one."""

    ALWAYS = {
        "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "equal", "allclose",
        "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "is_nonzero", "cpu",
    }  # fmt: skip
    INDEXING = {"__getitem__", "__setitem__", "index_put_", "index_put"}

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        by_mask = name in self.INDEXING and _holds_mask(args[1])
        options = kwargs or {}
        moved = name == "to" and any(isinstance(a, torch.device) for a in (*args, *options.values()))
        copied = moved and not options.get("non_blocking")
        if name in self.ALWAYS or by_mask or copied:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def _holds_mask(index: Any) -> bool:
    parts = index if isinstance(index, (tuple, list)) else (index,)
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)


@contextmanager
def host_waits(device: torch.device) -> Iterator[list[str]]:
    """List each time that the host waits for the GPU within the block, copies to it included.

    Counted by torch itself. On the CPU it is a guess: calls that read a value or a number of elements, or copy to a
    device, which would have to wait.
    """
    if device.type != "cuda":
        with _Reads() as reads:
            yield reads.seen
        return
    seen: list[str] = []
    torch.cuda.synchronize(device)
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode(before)
            told = [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
            seen += [f"{warning.filename}:{warning.lineno}" for warning in told]
