"""The faster decoder of a GPU's worker, as it measures at its start."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from pipelines.decoding import Place
from pipelines.loaders.base import BadSamples, Feed, Stream
from pipelines.views import Recipe

log = logging.getLogger(__name__)
PLACES: tuple[Place, ...] = ("gpu", "cpu")
ROUNDS = 5
WARM_UP = 3
"""Rounds that are not timed: DALI has batches ready before the first one is asked for."""


def faster(make: Callable[[Place], Feed], device: torch.device) -> Place:
    """Return where a batch is decoded in less time: the feeds that `make` gives deliver one each in turn.

    Where a sample is bad, the GPU is taken: the run itself says what is wrong with it.
    """
    feeds: dict[Place, Feed] = {}
    seconds: dict[Place, list[float]] = {place: [] for place in PLACES}
    try:
        for place in PLACES:
            feeds[place] = make(place)
        for number in range(WARM_UP + ROUNDS):
            for place in PLACES:
                took = _seconds(feeds[place], device)
                if number >= WARM_UP:
                    seconds[place].append(took)
    except BadSamples:
        log.info("data.decode: gpu, as a sample is bad that was to be timed")
        return "gpu"
    finally:
        for feed in feeds.values():
            feed.close()
    medians = {place: statistics.median(seconds[place]) for place in PLACES}
    found = min(PLACES, key=lambda place: medians[place])
    log.info(
        "data.decode: %s, for a batch takes %.3g s on the GPU, %.3g s on the CPU", found, medians["gpu"], medians["cpu"]
    )
    return found


def _seconds(feed: Feed, device: torch.device) -> float:
    """Return the seconds of the next batch, until it is there."""
    began = time.perf_counter()
    feed.next()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def batches(recipe: Recipe, batch: int) -> Stream:
    """Yield batches of any samples and random numbers, without end."""
    generator = np.random.default_rng(0)
    columns = sum(k for _, k in recipe.streams)
    while True:
        places = generator.integers(0, len(recipe.source.labels), batch)
        yield places, generator.random((batch, columns))
