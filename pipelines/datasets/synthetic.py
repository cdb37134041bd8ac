"""Learnable images of any shape and number, drawn from a seed: for tests and benchmarks."""

from __future__ import annotations

from math import prod
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.base import Data, Request
from pipelines.common.settings import AtLeast1
from pipelines.datasets.in_memory import in_memory
from pipelines.settings import Classes, DataSetSettings, Side
from pipelines.sources.base import Arrays, Listed, listing_of_arrays
from pipelines.views import Normalisation


class SyntheticSettings(DataSetSettings):
    """Learnable noise of any shape: each class is a random pattern, each sample that pattern plus noise."""

    in_memory: ClassVar[bool] = True
    name: Literal["synthetic"]
    shape: Annotated[list[Side], Field(min_length=3, max_length=3)] = [1, 28, 28]
    """Channels, height, width."""
    number_of_classes: Classes = 10
    """Number of classes; the samples are spread evenly over them."""
    samples: AtLeast1 = 1000
    """Training samples."""
    test_samples: AtLeast1 = 200
    """Test samples."""
    noise: Annotated[float, Field(ge=0, le=1e6)] = 64.0
    """Standard deviation of the noise, in grey levels of 0 to 255."""

    @model_validator(mode="after")
    def _fits_into_memory(self) -> SyntheticSettings:
        values = (self.samples + self.test_samples + self.number_of_classes) * prod(self.shape)
        if values > 2**32:
            raise ValueError(
                f"samples, test_samples and number_of_classes of shape {self.shape} are {values:,} values in memory; "
                f"take fewer or smaller ones: {2**32:,} are the most"
            )
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.shape
        return (channels, height, width)

    @property
    def classes(self) -> int:
        return self.number_of_classes


def load(settings: SyntheticSettings, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Return training and test images, uint8 [n, height, width, channels]: the class's pattern plus noise."""
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
    """Return the labels and listing of the training samples, without drawing images."""
    channels, height, width = settings.image_shape
    labels = _labels(settings.samples, settings)
    return Listed(labels, listing_of_arrays((height, width, channels), labels))


def build(settings: SyntheticSettings, request: Request) -> Data:
    """Return the pipelines. The images are the same for every seed of the run."""
    train, test = load(settings)
    channels = settings.image_shape[0]
    return in_memory(train, test, Normalisation((127.5,) * channels, (64.0,) * channels), settings, request)
