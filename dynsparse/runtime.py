"""The processes of a run: who am I, on which device, and how do we talk."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed import FileStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from dynsparse.errors import UserError

Backend = Literal["auto", "nccl", "gloo"]


@dataclass(frozen=True)
class Worker:
    """One process of a run. Without torchrun there is one: rank 0 of 1."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    under_torchrun: bool = False

    @classmethod
    def from_environment(cls) -> Worker:
        """As torchrun describes it in RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE."""
        if "RANK" not in os.environ:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        try:
            rank, world_size, local_rank, local_world_size = (int(os.environ[name]) for name in names)
        except (KeyError, ValueError) as error:
            raise UserError(
                f"RANK is set, but of {', '.join(names)} one is missing or no number ({error}); start with torchrun"
            ) from None
        return cls(rank, world_size, local_rank, local_world_size, under_torchrun=True)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def backend(self, asked: Backend) -> Literal["nccl", "gloo"]:
        """The backend for gradients. `auto`: NCCL where there are GPUs. UserError if there are too few."""
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if asked == "gloo" or (asked == "auto" and gpus == 0):
            return "gloo"
        if gpus < self.local_world_size:
            raise UserError(
                f"{self.local_world_size} workers on a machine with {gpus} GPUs; each needs its own: "
                f"start {max(1, gpus)}, or set distributed.backend=gloo to train on the CPU"
            )
        return "nccl"

    def device(self, asked: Backend) -> torch.device:
        if self.backend(asked) == "nccl":
            return torch.device("cuda", self.local_rank)
        return torch.device("cpu")


@contextmanager
def process_group(worker: Worker, backend: Backend, timeout: timedelta) -> Iterator[None]:
    """Connect the workers for the time of the block.

    CPU tensors always travel over gloo, so that plans, digests and flags need
    no GPU; CUDA tensors over NCCL. After an exception the group is left to the
    operating system: waiting for peers that will never answer would hang.
    """
    if not worker.under_torchrun:
        yield
        return
    device = worker.device(backend)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        timeout=timeout,
        store=_meet(worker, timeout),
        rank=worker.rank,
        world_size=worker.world_size,
    )
    yield
    dist.destroy_process_group()


def _meet(worker: Worker, timeout: timedelta) -> Store | None:
    """The part of the store in which nothing stands yet, the same for every worker. None: torch makes a store.

    On one machine it is a file, which launch/agent.py names anew for each
    attempt and no other user can read: no port is opened. Else it is
    torchrun's, which it keeps for all attempts of a launch, so that one could
    read the addresses of the one before, fail to connect, or hang. No number
    that torchrun gives its workers tells attempts apart on every machine. So
    each worker says hello by a name that it has just made up, and takes the
    part that it is told under that very name: the answer of a rank 0 that is
    there now. What rank 0 reads first may be of an earlier attempt; answering
    it does no harm.
    """
    store: Store
    if file := os.environ.get("DYNSPARSE_MEETING"):
        store = FileStore(file)
        store.set_timeout(timeout)
    elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*address, is_master=False, timeout=timeout, wait_for_workers=False)
    else:
        return None
    name = uuid4().hex
    if worker.is_main:
        _welcome(store, name, set(range(1, worker.world_size)), timeout)
        return PrefixStore(name, store)
    store.set(f"dynsparse/hello/{worker.rank}", name)
    part = store.get(f"dynsparse/welcome/{name}").decode()
    store.set(f"{part}/dynsparse/there/{worker.rank}", "")
    return PrefixStore(part, store)


def _welcome(store: Store, part: str, absent: set[int], timeout: timedelta) -> None:
    """Tell the other workers the part of the store, until all are there."""
    deadline = time.monotonic() + timeout.total_seconds()
    answered = set()
    while absent:
        for rank in sorted(absent):
            hello = f"dynsparse/hello/{rank}"
            name = store.get(hello).decode() if store.check([hello]) else ""
            if name and name not in answered:
                store.set(f"dynsparse/welcome/{name}", part)
                answered.add(name)
        absent = {rank for rank in absent if not store.check([f"{part}/dynsparse/there/{rank}"])}
        if time.monotonic() > deadline:
            raise RuntimeError(f"workers {sorted(absent)} have not come within {timeout.total_seconds():g} s")
        time.sleep(0.005)


def lost_peer(error: BaseException) -> str | None:
    """What the connection to the other workers reported; None for an error of another kind.

    Then another worker, its machine or the network is at fault, and a traceback of this one would mislead.
    """
    text = str(error)
    if not isinstance(error, dist.DistError) and "/gloo/" not in text:
        return None
    first = next(iter(text.splitlines()), "")
    return re.sub(r"^(\[[^]]*:\d+\] *)+", "", first).split(". ")[0].rstrip(".")


def memory() -> int | None:
    """Bytes that this machine or its container gives a process, as far as the system says."""
    try:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (ValueError, OSError):
        return None
    for limit in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # `max`, or another version of control groups.
            found.append(int(limit.read_text()))
    return min(found)


_CONTAINER_LIMITS = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")


def print_to_reader(text: str) -> None:
    """Print what somebody asked to see. A reader that has seen enough, as `... | head`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # For what is still in the buffer.
