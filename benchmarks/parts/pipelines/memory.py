"""Resident memory of the loaders over many epochs."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.processes import memory
from benchmarks.harness.record import Result
from benchmarks.harness.runs import evaluation_of
from benchmarks.parts.pipelines.bench import CLASSES, Bench, close


def resident(bench: Bench) -> Result:
    """Resident memory after each epoch of training and evaluation, each loader in a fresh process."""
    amount = bench.amount
    plans = {"train": (amount.memory_train, (160, 500)), "val": (amount.memory_val, (160, 500))}
    folder = bench.photographs("for_memory", plans)
    found: Result = {"epochs": amount.memory_epochs, "images": CLASSES * (amount.memory_train + amount.memory_val)}
    for loader in ("dali", "torch"):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            epochs = pool.submit(_epochs, bench, folder, loader).result()
        settled = epochs[min(4, len(epochs) - 2) :]
        slopes = {
            f"{key}_slope_mib_per_epoch": float(np.polyfit(range(len(settled)), [e[key] for e in settled], 1)[0])
            for key in ("rss_mib", "pss_mib")
            if settled[0][key] is not None
        }
        found[loader] = {"by_epoch": epochs, **slopes}
    return found


def _epochs(bench: Bench, folder: Path, loader: str) -> list[Result]:
    torch.set_num_threads(1)
    size = bench.amount.memory_size
    data = bench.data(folder, loader, bench.amount.memory_batch, (size, size + size // 8))
    found = []
    for _ in range(bench.amount.memory_epochs):
        for _ in data.train.epoch():
            pass
        for _ in evaluation_of(data).batches():
            pass
        found.append(memory())
    close(data.train, evaluation_of(data))
    return found
