"""CPU time of the loaders' stages: read, decode, resize and so on, one thread."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from benchmarks.harness.record import Result
from benchmarks.parts.pipelines.bench import Amount
from pipelines import augment
from pipelines.datasets.photographs import NORMALISATION
from pipelines.decoding import BY_DEFAULT
from pipelines.images.encoded import MOST_PIXELS
from pipelines.images.reference import decoded
from pipelines.loaders import dali_views, torch_views
from pipelines.loaders.dali_images import given
from pipelines.order import SampleOrder, Share
from pipelines.sources.class_folders import check_folders, class_names
from pipelines.sources.image_folder import list_images
from pipelines.sources.parts import TRAIN
from pipelines.views import RandomResizedCrop

DALI_STAGES = ("read", "size and window", "decode", "resize", "flip and normalise")
TORCH_STAGES = ("read", "decode", "size and window", "decode", "resize", "flip and normalise")


def dali_stages(folder: Path, amount: Amount) -> Result:
    """Run graphs that end ever later. Returns CPU milliseconds an image of each stage, from their differences."""
    upto = {stage: [_graph_ms(folder, amount, stage) for _ in range(3)] for stage in DALI_STAGES}
    medians = [statistics.median(times) for times in upto.values()]
    stages = dict(zip(DALI_STAGES, np.diff([0.0, *medians]).tolist(), strict=True))
    return {**stages, "all": medians[-1]}


def _graph_ms(folder: Path, amount: Amount, stage: str) -> float:
    source, view = (
        list_images(folder, "train", check_folders(folder, len(class_names(folder / TRAIN)), 0)[0]),
        RandomResizedCrop(amount.image_size),
    )
    order = SampleOrder(0, len(source.labels), min(amount.batch, len(source.labels)))

    def batches() -> Iterator[tuple[Any, ...]]:
        for epoch in range(1_000_000):
            for batch in range(order.batches_per_epoch):
                uniforms = order.randoms(epoch, batch, 0, Share(), view.uniforms)
                images = [given(source.encoded(index), MOST_PIXELS) for index in order.batch(epoch, batch)]
                yield images, *view.numbers(uniforms)

    graph = _partial_graph(
        batches(), amount.image_size, stage, batch_size=order.global_batch, num_threads=1, device_id=None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Early stages have no use for all that is given.
        graph.build()
    for _ in range(3):
        graph.run()
    began, runs = time.process_time(), max(1, amount.traced // order.global_batch)
    for _ in range(runs):
        graph.run()
    return 1000 * (time.process_time() - began) / (runs * order.global_batch)


@pipeline_def(exec_dynamic=True)  # type: ignore[untyped-decorator]
def _partial_graph(batches: Iterator[Any], size: int, stage: str) -> Any:
    """Build the graph of pipelines/loaders/dali_loader.py as far as one stage."""
    encoded, factors, place, mirror = fn.external_source(
        source=batches,
        num_outputs=4,
        batch=True,
        dtype=[types.UINT8, types.FLOAT64, types.FLOAT64, types.INT32],
        ndim=[1, 2, 1, 0],
    )
    image = dali_views.Encoded(encoded, BY_DEFAULT)
    window = dali_views.random_window(image.shape(), factors, place)
    pixels = image.window(*window)
    resized = dali_views.resized(pixels, size=(size, size))
    normalised = dali_views.Normaliser(NORMALISATION, half=False, channels_last=False)(resized, mirror=mirror)
    ends = dict(zip(DALI_STAGES, ((encoded,), window, (pixels,), (resized,), (normalised,)), strict=True))
    return ends[stage]


def torch_stages(folder: Path, amount: Amount) -> Result:
    """Take the torch loader's steps one by one. Returns CPU milliseconds an image of each."""
    source, view = (
        list_images(folder, "train", check_folders(folder, len(class_names(folder / TRAIN)), 0)[0]),
        RandomResizedCrop(amount.image_size),
    )
    chosen = np.arange(amount.traced) % len(source.labels)
    uniforms = np.random.default_rng(0).random((amount.traced, view.uniforms))
    numbers = list(zip(*view.numbers(uniforms), strict=True))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (NORMALISATION.mean, NORMALISATION.std))
    spent = dict.fromkeys(DALI_STAGES, 0.0)
    for index, (factors, place, mirror) in zip(chosen.tolist(), numbers, strict=True):
        times = [time.process_time()]
        encoded = source.encoded(index)
        times.append(time.process_time())
        image = decoded(encoded, MOST_PIXELS)
        image.load()
        times.append(time.process_time())
        top, left, height, width = augment.random_window(image.height, image.width, factors, place)
        times.append(time.process_time())
        tensor = torch_views.pixels(image.crop((left, top, left + width, top + height)))
        times.append(time.process_time())
        small = torch_views.resized(tensor, amount.image_size, amount.image_size)
        times.append(time.process_time())
        torch_views._mirrored(small, mirror).float().sub_(mean).div_(std)
        times.append(time.process_time())
        for stage, seconds in zip(TORCH_STAGES, np.diff(times).tolist(), strict=True):
            spent[stage] += seconds
    stages = {stage: 1000 * seconds / len(chosen) for stage, seconds in spent.items()}
    return {**stages, "all": sum(stages.values())}
