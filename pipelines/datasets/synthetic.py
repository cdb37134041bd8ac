"""Images made up from a seed, of any shape and number, that a network can learn: for tests and benchmarks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.base import Data, Request
from pipelines.datasets.in_memory import in_memory
from pipelines.datasets.settings import SyntheticSettings
from pipelines.sources.base import Arrays, Listed, listing_of_arrays
from pipelines.views import Normalisation


def load(settings: SyntheticSettings, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Training and test images, uint8 [n, height, width, channels]: the class's pattern plus noise."""
    channels, height, width = settings.image_shape
    random = np.random.default_rng(seed)
    patterns = random.integers(0, 256, (settings.classes, height, width, channels))

    def draw(n: int) -> Arrays:
        labels = _labels(n, settings)
        noisy = patterns[labels] + random.normal(0, settings.noise, (n, height, width, channels))
        return Arrays(np.clip(noisy, 0, 255).astype(np.uint8), labels)

    return draw(settings.samples), draw(settings.test_samples)


def _labels(n: int, settings: SyntheticSettings) -> NDArray[np.int64]:
    return np.arange(n, dtype=np.int64) % settings.classes


def listed(settings: SyntheticSettings) -> Listed:
    channels, height, width = settings.image_shape
    labels = _labels(settings.samples, settings)
    return Listed(labels, listing_of_arrays((height, width, channels), labels))


def build(settings: SyntheticSettings, request: Request) -> Data:
    train, test = load(settings)
    channels = settings.image_shape[0]
    return in_memory(train, test, Normalisation((127.5,) * channels, (64.0,) * channels), settings, request)
