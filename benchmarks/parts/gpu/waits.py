"""Waits of the host for the GPU."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_TORCH = Path(torch.__file__).parent


class _Reads(TorchFunctionMode):
    """A count of calls that make the host wait on a GPU, as far as it can be told without one.

    A tensor that was copied to without blocking is the host's: to read it is no wait for what is queued by then.
    """

    ALWAYS = {
        "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "equal", "allclose",
        "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "is_nonzero", "cpu",
    }  # fmt: skip
    INDEXING = {"__getitem__", "__setitem__", "index_put_", "index_put"}

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._on_host: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, options = getattr(func, "__name__", ""), kwargs or {}
        by_mask = name in self.INDEXING and _holds_mask(args[1])
        read = name in self.ALWAYS and not any(one is held for one in args[:1] for held in self._on_host)
        copied = name == "to" and any(isinstance(a, torch.device) for a in (*args, *options.values()))
        copied |= name in ("tensor", "as_tensor") and options.get("device") is not None
        if read or by_mask or (copied and not options.get("non_blocking") and not _in_torch(sys._getframe(1))):
            self.seen.append(name)
        if name == "copy_" and options.get("non_blocking"):
            self._on_host.append(args[0])
        return func(*args, **options)


def _in_torch(frame: FrameType) -> bool:
    """Whether torch itself makes the call: it asks for the device that a tensor is on already."""
    return Path(frame.f_code.co_filename).is_relative_to(_TORCH)


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
