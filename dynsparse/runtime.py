"""The processes of a run: a worker's ranks and device, and the connection between workers."""

from __future__ import annotations

import os
import re
import socket
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
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Variable that says which GPUs of a machine a process sees."""


@dataclass(frozen=True)
class Worker:
    """A process of a run. Without torchrun there is one: rank 0 of 1."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    under_torchrun: bool = False

    @classmethod
    def from_environment(cls) -> Worker:
        """Read the worker that torchrun describes in RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE."""
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
        """Whether this is rank 0, which prints, writes and decides."""
        return self.rank == 0

    def backend(self, asked: Backend) -> Literal["nccl", "gloo"]:
        """Return the backend for gradients: NCCL or gloo. Raises UserError if there are fewer GPUs than workers.

        One GPU may be all that this worker sees, as with `srun --gpus-per-task=1`: see `require_own_gpus`.
        """
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if asked == "gloo" or (asked == "auto" and gpus == 0):
            return "gloo"
        if gpus < self.local_world_size and not (gpus == 1 and VISIBLE in os.environ):
            raise UserError(
                f"{self.local_world_size} workers on a machine with {gpus} GPUs; each needs its own: "
                f"start {max(1, gpus)}, or set distributed.backend=gloo to train on the CPU"
            )
        return "nccl"

    def device(self, asked: Backend) -> torch.device:
        """Return the worker's GPU with NCCL, else the CPU."""
        if self.backend(asked) == "nccl":
            return torch.device("cuda", self.local_rank if torch.cuda.device_count() > 1 else 0)
        return torch.device("cpu")


@contextmanager
def process_group(worker: Worker, backend: Backend, timeout: timedelta) -> Iterator[None]:
    """Connect the workers for the time of the block.

    CPU tensors always travel over gloo, so that plans, digests and flags need no GPU; CUDA tensors travel over NCCL.
    After an exception the group is left to the operating system: waiting for peers that never answer would hang.
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
    if device.type == "cuda":
        require_own_gpus(device)
    yield
    dist.destroy_process_group()


def require_own_gpus(device: torch.device) -> None:
    """Raise UserError on all workers where two of them have the same GPU. All workers call it.

    Where each worker sees one GPU alone, all of them call theirs number 0: only its own identifier tells them apart. A
    part of a GPU (MIG) has one of its own.
    """
    mine = (str(torch.cuda.get_device_properties(device).uuid), socket.gethostname())
    found = [mine] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    owners: dict[str, int] = {}
    for rank, (gpu, host) in enumerate(found):
        if (owner := owners.setdefault(gpu, rank)) != rank:
            raise UserError(
                f"workers {owner} and {rank} have the same GPU of {host} ({gpu}); each needs its own: give each worker "
                f"another {VISIBLE}, start fewer, or set distributed.backend=gloo to train on the CPU"
            )


def _meet(worker: Worker, timeout: timedelta) -> Store | None:
    """Return an empty part of the store, the same for every worker; None where torch is to make a store.

    On one machine the store is a file, so that no port is opened. launch/agent.py names it anew for each attempt, and
    no other user can read it. Else it is torchrun's store, which lives for all attempts of a launch. A worker could
    read addresses of an earlier attempt there, and fail to connect or hang. No number from torchrun tells attempts
    apart on every machine. So each worker says hello by a random name, and waits for an answer under that name, which
    only a rank 0 that is alive now can give. Rank 0 may first read a hello of an earlier attempt; to answer it does no
    harm.
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
    """Tell the other workers which part of the store to use, until all of them have come."""
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
    """Return the message of a lost connection to other workers; None for an error of another kind.

    Another worker, its machine or the network is at fault then, and a traceback of this worker would mislead.
    """
    text = str(error)
    if not isinstance(error, dist.DistError) and "/gloo/" not in text:
        return None
    first = next(iter(text.splitlines()), "")
    return re.sub(r"^(\[[^]]*:\d+\] *)+", "", first).split(". ")[0].rstrip(".")


def memory() -> int | None:
    """Return the bytes of memory that this machine or its container gives a process; None where unknown."""
    try:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (ValueError, OSError):
        return None
    for limit in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # `max`, or another version of control groups.
            found.append(int(limit.read_text()))
    return min(found)


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that this process has held, on its GPU, or of the machine without one; None where unknown.

    On a GPU they are those of tensors, on Linux all pages of the process at once, the libraries' included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return None


_CONTAINER_LIMITS = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
