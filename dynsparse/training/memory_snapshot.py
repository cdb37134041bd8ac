"""A snapshot of a GPU's memory when it runs out."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from dynsparse import files
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.run import names

log = logging.getLogger(__name__)

MOST_EVENTS = 100_000
"""Allocations and releases that are remembered with their origin: the latest ones."""


def require_memory_history(config: RunConfig, worker: Worker) -> None:
    """Raise UserError if `log.memory_history` is asked for on a CPU, where nothing records it."""
    if config.log.memory_history and worker.device(config.distributed.backend).type != "cuda":
        raise UserError("log.memory_history records the memory of GPUs, and this run is on CPUs: leave it out")


@contextlib.contextmanager
def snapshot_when_full(folder: Path, on: torch.device, *, rank: int, history: bool) -> Iterator[None]:
    """Write a snapshot into the run's `folder` if GPU memory runs out in the block; the error goes on.

    It shows what fills the memory. With `history` it also tells by which lines of code. Without a GPU, do nothing.
    """
    if on.type != "cuda":
        yield
        return
    if history:
        torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS)
    try:
        yield
    except torch.OutOfMemoryError:
        _write(folder / names.memory(rank), history=history)
        raise
    finally:
        if history:
            torch.cuda.memory._record_memory_history(enabled=None)


def _write(path: Path, *, history: bool) -> None:
    """Write the snapshot and say where it lies. Whatever fails, the first error is the one to be told."""
    try:
        files.make_way(path)
        torch.cuda.memory._dump_snapshot(str(path))
    except Exception as error:  # noqa: BLE001 - torch raises many kinds, and memory is short
        log.error("GPU memory ran out; no snapshot of it could be written to %s (%s)", path, error)
        return
    plot = "trace_plot" if history else "segment_plot"
    more = "" if history else "; log.memory_history=true tells which code took it"
    command = f"python -m torch.cuda._memory_viz {plot} {path} -o memory.html"
    log.error("GPU memory ran out; %s shows what fills it: %s%s", path, command, more)
