"""What is made of an image. A view says what and with which numbers; how is a loader's business.

To add one: a class here, and the function that makes it in dali_views.py and in
torch_views.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines import augment
from pipelines.order import Uniforms
from pipelines.sources.base import Source

Numbers = tuple[NDArray[Any], ...]
"""Arrays [batch, ...]."""


@dataclass(frozen=True)
class View:
    """A transform of images. All of its random numbers come from outside."""

    uniforms: ClassVar[int] = 0
    """Random numbers that a sample needs."""

    def numbers(self, uniforms: Uniforms) -> Numbers:
        """What the transform is given beside each image, from float64 [batch, self.uniforms] in [0, 1)."""
        return ()


@dataclass(frozen=True)
class AsItIs(View):
    """The whole image, resized to `size` (height, width) if set."""

    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class RandomCrop(View):
    """A random crop of `size` (height, width), mirrored half of the time, of images `room` larger than that."""

    size: tuple[int, int]
    room: tuple[int, int]
    uniforms: ClassVar[int] = 3

    def numbers(self, uniforms: Uniforms) -> Numbers:
        """Top and left, int32 in pixels, each equally likely; whether to mirror, int32."""
        top, left = (np.floor(uniforms[:, i] * (self.room[i] + 1)).astype(np.int32) for i in (0, 1))
        return top, left, augment.mirrored(uniforms[:, 2])


@dataclass(frozen=True)
class CentralCrop(View):
    """As evaluation sees an image: the shorter side resized to `resize`, then the central `size` x `size`."""

    size: int
    resize: int


@dataclass(frozen=True)
class RandomResizedCrop(View):
    """A random window of an image, resized to `size` x `size`, mirrored half of the time."""

    size: int
    uniforms: ClassVar[int] = augment.WINDOW_UNIFORMS + 1

    def numbers(self, uniforms: Uniforms) -> Numbers:
        """`augment.window_factors`, places float64 [batch, 2], whether to mirror, int32."""
        shape, place, mirror = np.split(uniforms, [2 * augment.ATTEMPTS, augment.WINDOW_UNIFORMS], axis=1)
        return augment.window_factors(shape), place.copy(), augment.mirrored(mirror[:, 0])


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std of each channel, in grey levels of 0 to 255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Recipe:
    """Samples, and what the network gets to see of them."""

    source: Source
    view: View
    normalisation: Normalisation
