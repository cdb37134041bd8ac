"""The processes of a run: who am I, on which device, and how do we talk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

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
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    yield
    dist.destroy_process_group()


def print_to_reader(text: str) -> None:
    """Print what somebody asked to see. A reader that has seen enough, as `... | head`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # For what is still in the buffer.


def speaks_first() -> bool:
    """Whether this worker is the first on its machine to ask, so that an error that all share is said once.

    Not simply local rank 0: torchrun ends it as soon as another worker has
    left, maybe before it has spoken. torchrun gives the workers of a start a
    folder of their own and removes it in the end.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None:
        return True
    try:
        (Path(file).parents[1] / "dynsparse-has-spoken").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True
