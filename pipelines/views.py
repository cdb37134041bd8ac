"""Views: transforms of images. A view says what is made of an image; the loaders say how.

To add one: a class here, and the function that makes it in loaders/dali_views.py and in loaders/torch_views.py.
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
"""Arrays [batch, ...]: parameters of the transform for each image."""


@dataclass(frozen=True)
class View:
    """A transform of images. Its random numbers are given to it."""

    uniforms: ClassVar[int] = 0
    """Number of random numbers for a sample."""

    def numbers(self, uniforms: Uniforms) -> Numbers:
        """Return the parameters of the transform, from float64 [batch, self.uniforms] in [0, 1)."""
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
        """Return top and left, int32 in pixels, each equally likely, and 1 to mirror, int32."""
        top, left = (np.floor(uniforms[:, i] * (self.room[i] + 1)).astype(np.int32) for i in (0, 1))
        return top, left, augment.mirrored(uniforms[:, 2])


@dataclass(frozen=True)
class CentralCrop(View):
    """The image of an evaluation: the shorter side resized to `resize`, then the central `size` x `size`."""

    size: int
    resize: int


@dataclass(frozen=True)
class RandomResizedCrop(View):
    """A random window of an image, resized to `size` x `size`, mirrored half of the time."""

    size: int
    uniforms: ClassVar[int] = augment.WINDOW_UNIFORMS + 1

    def numbers(self, uniforms: Uniforms) -> Numbers:
        """Return `augment.window_factors`, places float64 [batch, 2], and 1 to mirror, int32."""
        shape, place, mirror = np.split(uniforms, [2 * augment.ATTEMPTS, augment.WINDOW_UNIFORMS], axis=1)
        return augment.window_factors(shape), place.copy(), augment.mirrored(mirror[:, 0])


@dataclass(frozen=True)
class Normalisation:
    """The normalisation (x - mean) / std of each channel, in grey levels of 0 to 255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Recipe:
    """Samples, and the view of them that the network gets."""

    source: Source
    view: View
    normalisation: Normalisation
