"""Data sets that fit into memory: arrays go through DALI's `external_source`, in our order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types

from pipelines.base import Data, Request
from pipelines.config import DataSetSettings
from pipelines.order import Indices, Uniforms
from pipelines.ordered import assemble
from pipelines.recipe import Input, Recipe, on_gpu


@dataclass(frozen=True)
class Arrays:
    """Images uint8 [n, height, width, channels] with labels int64 [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        assert self.images.dtype == np.uint8 and self.images.ndim == 4, (self.images.dtype, self.images.shape)
        assert self.labels.dtype == np.int64 and self.labels.shape == self.images.shape[:1], self.labels.shape

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Transform:
    """What DALI does with an image: resize to (height, width) if set, then (x - mean) / std in grey levels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None

    def normalised(self, images: Any, **crop_and_mirror: Any) -> Any:
        """DALI's node: float32 CHW from HWC, (x - mean) / std. What else its operator can do is passed on."""
        return fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=list(self.mean),
            std=list(self.std),
            **crop_and_mirror,
        )


IMAGE = Input(types.UINT8, ndim=3, layout="HWC")


@dataclass(frozen=True)
class Unaugmented(Recipe):
    """Each image as `transform` makes it."""

    arrays: Arrays
    transform: Transform

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.arrays.labels

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (IMAGE,)

    def read(self, indices: Indices, uniforms: Uniforms) -> tuple[Any, ...]:
        return (self.arrays.images[indices],)

    def images(self, *inputs: Any) -> Any:
        (images,) = inputs
        if on_gpu():
            images = images.gpu()
        if self.transform.size is not None:
            images = fn.resize(images, size=self.transform.size, interp_type=types.INTERP_LINEAR, dtype=types.FLOAT)
        return self.transform.normalised(images)


def in_memory(train: Arrays, test: Arrays, transform: Transform, settings: DataSetSettings, request: Request) -> Data:
    """The pipelines of a data set that fits into memory, without augmentation."""
    plain = Unaugmented(train, transform)
    return assemble(plain, plain, Unaugmented(test, transform), settings, request)
