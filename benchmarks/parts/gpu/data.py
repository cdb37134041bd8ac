"""Part of `benchmarks.gpu`: photographs decoded on the GPU against on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import pipelines
from benchmarks.harness.rounds import Act, compared, summaries
from benchmarks.harness.runs import evaluation_of
from benchmarks.parts.gpu.bench import (
    FAST,
    Bench,
    Found,
    make_trainer,
    resnet,
    rounds_until,
    settings,
    steps_without_reading,
)
from pipelines.base import Data, Request
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.datasets.photographs import STD
from pipelines.order import Share
from pipelines.tools import sample_images

LEAST_SHARE = 0.95
"""Share of the images a second of synthetic data that training on photographs is to reach."""


def dali(bench: Bench, found: Found) -> None:
    """Measure how fast the two decode, and how alike."""
    try:
        import nvidia.dali  # noqa: F401 - optional
    except ImportError as error:
        found.say("nvidia.dali", "not installed")
        found.figures["missing"] = str(error)
        return
    batch, threads = (4, 1) if bench.tiny else (64, min(16, os.cpu_count() or 1))
    with TemporaryDirectory() as folder:
        data = _data(bench, folder, batch, threads)
        _compare(found, data)
        _time(bench, found, data, batch, threads)
        _train(bench, found, data["device"], batch)
        for one in data.values():
            one.close()


def _data(bench: Bench, folder: str, batch: int, threads: int) -> dict[str, Data]:
    each, size = (1, 32) if bench.tiny else (40, 224)
    parts = {"train": (each, (375, 500)), "val": (max(1, each // 4), (160, 500))}
    files = [file for part, (n, sides) in parts.items() for file in sample_images.plan(part, n, sides, 0, 0)]
    sample_images.write(files, Path(folder) / "photographs", threads)
    config = ImagenetSettings.model_validate(
        {
            "name": "imagenet", "path": f"{folder}/photographs", "loader": "dali", "threads": threads,
            "number_of_classes": len(sample_images.CLASSES), "image_size": size, "evaluation_resize": size + 32,
        }
    )  # fmt: skip
    places = {"device": bench.device.index if bench.on_gpu else None, "cpu": None}
    return {
        where: pipelines.build(config, Request(0, batch, Share(), batch, device_id=index))
        for where, index in places.items()
    }


def _train(bench: Bench, found: Found, data: Data, batch: int) -> None:
    """Time an epoch's steps of a dense ResNet-50 from photographs, and as many from images that are there already."""
    case = resnet(bench, batch)._replace(classes=len(sample_images.CLASSES), batch=batch)
    trainer = make_trainer(settings(case, {"name": "dense"}, train=FAST), bench.device)
    count = data.train.epochs.steps(0)

    def from_photographs() -> None:
        for micro_batches in data.train.epoch():
            trainer.train_step([(images.to(bench.device), labels.to(bench.device)) for images, labels in micro_batches])

    ways: dict[str, Act] = {
        "synthetic": partial(steps_without_reading, trainer, count),
        "photographs": from_photographs,
    }
    found.figures["training"] = compared(rounds_until(bench, ways, 5), "synthetic")
    ratio = found.figures["training"]["ratio_to_synthetic"]["photographs"]["median"]
    found.target(f"{case.title}: step from photographs over one from images that are there", ratio, 1 / LEAST_SHARE)


def _compare(found: Found, data: Mapping[str, Data]) -> None:
    largest = 0.0
    for (ours, labels), (theirs, same) in zip(*(evaluation_of(one).batches() for one in data.values()), strict=True):
        assert torch.equal(labels.cpu(), same.cpu())
        levels = 255 * torch.tensor(STD).view(1, 3, 1, 1) * (ours.cpu() - theirs.cpu())
        largest = max(largest, float(levels.abs().max()))
    found.figures["largest_difference_in_grey_levels"] = largest
    found.say("largest difference of a pixel, device against CPU decode, of 255", f"{largest:.1f}")


def _time(bench: Bench, found: Found, data: Mapping[str, Data], batch: int, threads: int) -> None:
    def epoch(where: str) -> None:
        for ((images, _),) in data[where].train.epoch():
            images.to(bench.device)

    times = rounds_until(bench, {where: partial(epoch, where) for where in data}, 5)
    images = batch * data["cpu"].train.epochs.steps(0)
    found.figures["images_per_second"] = summaries({way: [images / s for s in times[way]] for way in times})
    found.figures["epochs"] = compared(times, "cpu")
    for where, figures in found.figures["images_per_second"].items():
        found.say(f"images/s, decoded by: {where}, {threads} threads", f"{figures['median']:.0f}")
