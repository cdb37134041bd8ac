"""Speed of the loaders: images a second, and CPU time an image."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler

from benchmarks.harness.processes import cpu_seconds
from benchmarks.harness.record import Result
from benchmarks.harness.rounds import in_rounds, ratio, returned, summaries
from benchmarks.parts.pipelines.bench import Amount, Bench, endless
from benchmarks.parts.pipelines.stages import dali_stages, torch_stages
from pipelines.datasets.photographs import MEAN, STD
from pipelines.tools import shards as shard_tools

COMPARED = (("dali", "torch"), ("dali", "torchvision"), ("torch", "torchvision"), ("dali, shards", "dali"))


def speed(bench: Bench) -> Result:
    """Measure on images that are made."""
    return speed_of(bench, bench.large())


def photographs(bench: Bench) -> Result:
    """Measure on the images of a folder."""
    assert bench.images is not None
    return speed_of(bench, bench.images)


def speed_of(bench: Bench, folder: Path) -> Result:
    """Images a second and CPU time an image, in rounds in which the ways take turns."""
    amount, shards = bench.amount, bench.folder / f"{folder.name}_shards"
    if not shards.exists():
        shard_tools.write(folder, shards, 1000)
    streams: dict[str, Callable[[], Iterator[Any]]] = {
        "dali": lambda: endless(bench.data(folder, "dali", amount.batch)),
        "torch": lambda: endless(bench.data(folder, "torch", amount.batch)),
        "torchvision": lambda: reference(folder, amount, bench.threads),
        "dali, shards": lambda: endless(bench.data(shards, "dali", amount.batch)),
    }
    ways = {way: partial(timed, make, amount) for way, make in streams.items()}
    found = in_rounds(ways, amount.rounds, warm_up=0, measure=returned)
    rates = {way: [rate for rate, _ in rounds] for way, rounds in found.items()}
    cpu = {way: [ms for _, ms in rounds] for way, rounds in found.items()}
    files = [path for path in (folder / "train").rglob("*") if path.is_file()]
    return {
        "threads": bench.threads,
        "image_size": amount.image_size,
        "batch": amount.batch,
        "rounds": amount.rounds,
        "images_per_round": amount.batches * amount.batch,
        "files": len(files),
        "mean_file_kb": statistics.mean(file.stat().st_size for file in files) / 1000,
        "images_per_second": summaries(rates),
        "cpu_ms_per_image": summaries(cpu),
        "ratios": {f"{a} / {b}": ratio(rates[a], rates[b]) for a, b in COMPARED},
        "cpu_ratios": {f"{a} / {b}": ratio(cpu[a], cpu[b]) for a, b in COMPARED},
        "stages_cpu_ms_per_image": {"dali": dali_stages(folder, amount), "torch": torch_stages(folder, amount)},
    }


def timed(make: Callable[[], Iterator[Any]], amount: Amount) -> tuple[float, float]:
    """Images/s and CPU milliseconds an image, after a warm-up. Nothing of the pipeline outlives it."""
    stream = make()
    for _ in range(amount.warm_up):
        next(stream)
    cpu, began = cpu_seconds(), time.perf_counter()
    for _ in range(amount.batches):
        next(stream)
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    if hasattr(stream, "close"):
        stream.close()
    del stream
    gc.collect()
    images = amount.batches * amount.batch
    return images / seconds, 1000 * cpu / images


def reference(folder: Path, amount: Amount, workers: int) -> Iterator[Any]:
    """Return torchvision's reference recipe, as people write it."""
    # Not at the top: `benchmarks.pipelines` first makes torchvision importable.
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(amount.image_size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    images = ImageFolder(str(folder / "train"), transform)
    # One long epoch: the pause between short ones would count against it, and ImageNet's are long.
    sampler = RandomSampler(images, num_samples=1_000_000)
    options: dict[str, Any] = {"persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}
    return iter(DataLoader(images, amount.batch, sampler=sampler, num_workers=workers, drop_last=True, **options))
