"""Runs a function on several gloo ranks on this machine."""

from __future__ import annotations

import pickle
import signal
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from dynsparse.runtime import Worker
from tests.forks import CONTEXT

LIMIT_SECONDS = 120


def run_distributed(act: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Call `act(worker, *arguments)` on each rank; returns the ranks' results in order.

    `act` is a module-level function. If a rank raises, AssertionError carries its
    traceback; no process outlives the call. Ranks find each other through a
    file, so that no port can be taken.
    """
    # Pickled here: multiprocessing's own way with tensors is shared memory, which ends with its process.
    packed = pickle.dumps((act, arguments))
    with TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world_size):
            ours, theirs = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(
                target=_rank_main, args=(packed, rank, world_size, Path(folder) / "store", theirs)
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            return [_receive(pipe, rank) for rank, pipe in enumerate(pipes)]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _receive(pipe: Any, rank: int) -> Any:
    assert pipe.poll(LIMIT_SECONDS), f"rank {rank} gave no answer in {LIMIT_SECONDS} s"
    try:
        succeeded, result = pickle.loads(pipe.recv_bytes())
    except EOFError:
        raise AssertionError(f"rank {rank} died without an answer") from None
    assert succeeded, f"rank {rank} failed:\n{result}"
    return result


def _rank_main(packed: bytes, rank: int, world_size: int, store: Path, pipe: Any) -> None:
    torch.set_num_threads(1)
    # The server that ranks are forked from may have been started while a loader kept signals away.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
        )
        act, arguments = pickle.loads(packed)
        answer = (True, act(Worker(rank, world_size, rank, world_size, under_torchrun=True), *arguments))
    except BaseException:  # noqa: BLE001 - whatever it is, the test must see it
        answer = (False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(answer))
