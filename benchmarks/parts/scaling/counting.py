"""Bytes handed to torch.distributed, and open connections."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from dynsparse.distributed import sync

COUNTED = ("broadcast", "all_reduce", "all_gather", "gather", "send", "isend")
NOTED_AS = {"isend": "send"}
OWN_TENSOR = {"all_gather": 1}
"""Index of the argument that this rank hands over, where it is not the first."""
Sent = dict[str, list[int]]
"""Bytes that this rank hands to each call, by function; `isend` counts as `send`."""


@contextmanager
def counted() -> Iterator[Sent]:
    """Count what is handed to torch.distributed's functions meanwhile, by its own calls among themselves too.

    DDP reduces gradients beneath these functions: they are not in it. `send` calls `isend` in some versions of torch,
    and either way counts once.
    """
    sent: Sent = {}
    plain = {name: getattr(distributed_c10d, name) for name in COUNTED}
    sending = False

    def counting(name: str) -> Callable[..., Any]:
        noted_as = NOTED_AS.get(name, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal sending
            outer = sending
            if not outer:
                tensor = arguments[OWN_TENSOR.get(name, 0)]
                sent.setdefault(noted_as, []).append(tensor.element_size() * tensor.numel())
            sending = noted_as == "send"
            try:
                return plain[name](*arguments, **options)
            finally:
                sending = outer

        return call

    try:
        for name in COUNTED:
            act = counting(name)
            for module in (dist, distributed_c10d):
                setattr(module, name, act)
        yield sent
    finally:
        for name, act in plain.items():
            for module in (dist, distributed_c10d):
                setattr(module, name, act)


def connections() -> int:
    """Open connections of this process over TCP. A collective: none ends before all have counted."""
    inodes = {line.split()[9] for kind in ("tcp", "tcp6") for line in _lines(Path(f"/proc/self/net/{kind}"))}
    links = [_link(Path(entry.path)) for entry in os.scandir("/proc/self/fd")]
    sync.any_rank(False)
    return sum(link.removeprefix("socket:[").removesuffix("]") in inodes for link in links)


def _lines(path: Path) -> list[str]:
    """Lines of established connections."""
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    return [line for line in lines if line.split()[3] == "01"]


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:  # The folder itself was open while it was read.
        return ""
