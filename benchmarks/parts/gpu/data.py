"""Part of `benchmarks.gpu`: photographs decoded on the GPU against on the CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from itertools import islice
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
from benchmarks.parts.gpu.decoders import Places, verdicts
from pipelines.base import Batch, Data, Request, TrainPipeline
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.datasets.photographs import STD
from pipelines.decoding import BY_DEFAULT, Decoding
from pipelines.order import Share
from pipelines.tools import sample_images

LEAST_SHARE = 0.95
"""Share of the images a second of synthetic data that training on photographs is to reach."""
MADE = "CPU, without a GPU"
"""The place that the others are compared with."""
STEPS = 20
"""Batches in a block, so that those which DALI has ready before it are few among them."""


def dali(bench: Bench, found: Found) -> None:
    """Compare what the decoders refuse and how alike they decode; measure how fast, alone and under training."""
    with TemporaryDirectory() as folder:
        try:
            import nvidia.dali  # noqa: F401 - optional
        except ImportError as error:
            found.say("nvidia.dali", "not installed")
            found.figures["missing"] = str(error)
            verdicts(bench, found, {}, Path(folder) / "odd")
            return
        verdicts(bench, found, places(bench), Path(folder) / "odd")
        if bench.photographs is None and find_spec("sklearn") is None:
            found.say(
                "photographs", "left out: scikit-learn, which has some, is not installed, nor is --photographs given"
            )
            return
        _photographs(bench, found, Path(folder))


def places(bench: Bench) -> Places:
    """Return where DALI is to decode, the product's choice first."""
    index = bench.device.index if bench.on_gpu else None
    on_gpu = {"GPU": (index, Decoding("gpu", (640, 480)))} if bench.on_gpu else {}
    return {**on_gpu, "CPU": (index, Decoding("cpu")), MADE: (None, BY_DEFAULT)}


def _photographs(bench: Bench, found: Found, folder: Path) -> None:
    batch, threads = (4, 1) if bench.tiny else (64, min(16, os.cpu_count() or 1))
    config = _config(bench, folder, threads)
    data = {place: _built(config, batch, index, decoding) for place, (index, decoding) in places(bench).items()}
    _compare(found, data)
    _time(bench, found, data, batch, threads)
    found.say("data.decode: auto takes", _chosen(bench, config, batch))
    first = next(iter(data))
    _train(bench, found, data[first].train, batch, config.classes)
    for one in data.values():
        one.close()


def _config(bench: Bench, folder: Path, threads: int) -> ImagenetSettings:
    """Return the settings of the photographs that are given, or else of some that are made."""
    each, size = (1, 32) if bench.tiny else (40, 224)
    if bench.photographs is None:
        parts = {"train": (each, (375, 500)), "val": (max(1, each // 4), (160, 500))}
        files = [file for part, (n, sides) in parts.items() for file in sample_images.plan(part, n, sides, 0, 0)]
        sample_images.write(files, folder / "photographs", threads)
    return ImagenetSettings.model_validate(
        {
            "name": "imagenet", "path": str(bench.photographs or folder / "photographs"), "loader": "dali",
            "threads": threads, "image_size": size, "evaluation_resize": size + 32,
        }
    ).resolved()  # fmt: skip


def _built(config: ImagenetSettings, batch: int, index: int | None, decoding: Decoding) -> Data:
    asked = config.model_copy(update={"decode": None if index is None else decoding.place})
    return pipelines.build(asked, Request(0, batch, Share(), batch, device_id=index))


def _chosen(bench: Bench, config: ImagenetSettings, batch: int) -> str:
    """Return what a worker says of its choice when it is asked to take the faster."""
    if not bench.on_gpu:
        return "cpu: there is no GPU, and nothing is measured"
    said: list[str] = []
    log = logging.getLogger("pipelines.loaders.dali_timing")
    handler = _Lines(said)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    data = _built(config, batch, bench.device.index, Decoding("auto"))
    try:
        next(data.train.epoch())
    finally:
        data.close()
        log.removeHandler(handler)
    return "; ".join(said).replace("data.decode: ", "")


class _Lines(logging.Handler):
    """A handler that keeps the lines of a log."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._lines.append(record.getMessage())


def _endless(pipeline: TrainPipeline) -> Iterator[list[Batch]]:
    while True:
        yield from pipeline.epoch()


def _block(bench: Bench, pipeline: TrainPipeline) -> int:
    return pipeline.epochs.steps(0) if bench.tiny else STEPS


def _train(bench: Bench, found: Found, pipeline: TrainPipeline, batch: int, classes: int) -> None:
    """Time a block of steps of a dense ResNet-50 from photographs, and as many from images that are there already."""
    case = resnet(bench, batch)._replace(classes=classes, batch=batch)
    trainer = make_trainer(settings(case, {"name": "dense"}, train=FAST), bench.device)
    count, photographs = _block(bench, pipeline), _endless(pipeline)

    def from_photographs() -> None:
        for micro_batches in islice(photographs, count):
            trainer.train_step([(images.to(bench.device), labels.to(bench.device)) for images, labels in micro_batches])

    ways: dict[str, Act] = {
        "synthetic": partial(steps_without_reading, trainer, count),
        "photographs": from_photographs,
    }
    found.figures["training"] = compared(rounds_until(bench, ways, 5), "synthetic")
    ratio = found.figures["training"]["ratio_to_synthetic"]["photographs"]["median"]
    found.target(f"{case.title}: step from photographs over one from images that are there", ratio, 1 / LEAST_SHARE)


def _compare(found: Found, data: Mapping[str, Data]) -> None:
    """Tell how far the pixels of some evaluation batches differ from those that are decoded without a GPU."""
    largest, sums, count = dict.fromkeys(data, 0.0), dict.fromkeys(data, 0.0), 0
    for batches in islice(zip(*(evaluation_of(one).batches() for one in data.values()), strict=True), 10):
        of = dict(zip(data, batches, strict=True))
        images, labels = of[MADE]
        count += images.numel()
        for place, (theirs, same) in of.items():
            assert torch.equal(labels.cpu(), same.cpu())
            levels = (255 * torch.tensor(STD).view(1, 3, 1, 1) * (images.cpu() - theirs.cpu())).abs()
            largest[place] = max(largest[place], float(levels.max()))
            sums[place] += float(levels.sum(dtype=torch.float64))
    means = {place: total / count for place, total in sums.items()}
    found.figures["differences_in_grey_levels"] = {"largest": largest, "mean": means}
    for place in data:
        if place != MADE:
            title = f"decoded by: {place}, against {MADE}: a pixel's difference, mean and largest, of 255"
            found.say(title, f"{means[place]:.3f}, {largest[place]:.1f}")


def _time(bench: Bench, found: Found, data: Mapping[str, Data], batch: int, threads: int) -> None:
    def block(where: str) -> Callable[[], None]:
        pipeline = data[where].train
        count, steps = _block(bench, pipeline), _endless(pipeline)

        def run() -> None:
            for ((images, _),) in islice(steps, count):
                images.to(bench.device)

        return run

    times = rounds_until(bench, {where: block(where) for where in data}, 5)
    images = batch * _block(bench, data[MADE].train)
    found.figures["images_per_second"] = summaries({way: [images / s for s in times[way]] for way in times})
    found.figures["blocks"] = compared(times, MADE)
    for where, figures in found.figures["images_per_second"].items():
        found.say(f"images/s, decoded by: {where}, {threads} threads", f"{figures['median']:.0f}")
