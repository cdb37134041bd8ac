"""Part of `benchmarks.gpu`: two workers on one GPU, whose gradients and masks must agree.

NCCL takes one worker a GPU, so gloo carries them, by way of the host. What is done on the GPU is the same.
"""

from __future__ import annotations

import sys
import time
import traceback
from multiprocessing import get_context
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]

from benchmarks.parts.gpu.bench import FAST, MOVING, Bench, Found, make_trainer, settings, steps, wrn
from dynsparse.distributed import digest
from dynsparse.runtime import Worker

WORKERS = 2
STEPS = 6
Answer = dict[str, tuple[int, int]]


def two_ranks(bench: Bench, found: Found) -> None:
    """Train with reallocations, with all gradients and with active ones alone; compare digests, and the two ways."""
    context = get_context("spawn")
    with TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(WORKERS):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_rank_main, args=(rank, f"{folder}/store", bench, theirs), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            answers = [_received(pipe, bench.ends) for pipe in pipes]
        finally:
            for process in processes:
                process.kill()
                process.join()
    first, second = answers
    for way in first:
        found.check(f"{way} gradients: both workers hold the same masks and weights", first[way] == second[way])
    for method in MOVING:
        dense, active = (first[f"{method}, {way}"] for way in ("dense", "active"))
        found.say(f"{method}: active gradients give the bits of all", "yes" if dense == active else "no")
    found.figures["digests"] = {way: [f"{one:016x}" for one in both] for way, both in first.items()}


def _received(pipe: Connection, ends: float) -> Answer:
    if not pipe.poll(max(1.0, ends - time.monotonic())):
        raise TimeoutError("a worker gave no answer")
    answer: Answer | str = pipe.recv()
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return answer


def _rank_main(rank: int, store: str, bench: Bench, pipe: Connection) -> None:
    if not bench.on_gpu:
        torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=FileStore(store, WORKERS), rank=rank, world_size=WORKERS)
        try:
            pipe.send(_trained(rank, bench))
        finally:
            dist.destroy_process_group()
    except Exception:  # noqa: BLE001 - told by the process that waits
        pipe.send(traceback.format_exc())
        sys.exit(1)


def _trained(rank: int, bench: Bench) -> Answer:
    """Return the digests of masks and weights after some steps of each method and way. A desync raises in them."""
    found: Answer = {}
    worker = Worker(rank, WORKERS, rank, WORKERS, under_torchrun=True)
    for method, options in MOVING.items():
        for way in ("dense", "active"):
            sections: dict[str, Any] = {"distributed": {"gradients": way, "backend": "gloo"}}
            config = settings(wrn(bench), options, train=FAST, **sections)
            trainer = make_trainer(config, bench.device, worker=worker)
            steps(trainer, STEPS)
            trainer.sparse.verify()
            masks = trainer.masks
            found[f"{method}, {way}"] = digest.mask_digest(masks), digest.weight_digest(trainer.model, masks)
    return found
