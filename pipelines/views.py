"""Views: transforms of images. A view says what is made of an image; the loaders say how.

To add one: a class here, and the function that makes it in loaders/dali_views.py and in loaders/torch_views.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines import augment
from pipelines.order import Uniforms
from pipelines.pixels.recipe import NO_PIXELS, Pixels
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

    def sized(self, size: int) -> View:
        """Return the view that makes images of `size` x `size` instead. Only views that crop to a size have one."""
        raise NotImplementedError(type(self).__name__)


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

    def sized(self, size: int) -> CentralCrop:
        """Return the central crop of `size`, of an image that is resized in proportion."""
        return CentralCrop(size, max(size, round(self.resize * size / self.size)))


@dataclass(frozen=True)
class RandomResizedCrop(View):
    """A random window of an image, resized to `size` x `size`, mirrored half of the time."""

    size: int
    uniforms: ClassVar[int] = augment.WINDOW_UNIFORMS + 1

    def numbers(self, uniforms: Uniforms) -> Numbers:
        """Return `augment.window_factors`, places float64 [batch, 2], and 1 to mirror, int32."""
        shape, place, mirror = np.split(uniforms, [2 * augment.ATTEMPTS, augment.WINDOW_UNIFORMS], axis=1)
        return augment.window_factors(shape), place.copy(), augment.mirrored(mirror[:, 0])

    def sized(self, size: int) -> RandomResizedCrop:
        """Return the same random windows, resized to `size`."""
        return RandomResizedCrop(size)


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
    pixels: Pixels = NO_PIXELS
    """Operations on the views."""
    repeats: int = 1
    """Times that each sample of a global batch appears in it."""

    @property
    def streams(self) -> tuple[tuple[str, int], ...]:
        """Name and length of the random numbers of a sample: the view's, then those of the operations."""
        return (("augment", self.view.uniforms), *self.pixels.streams)

    def split(self, uniforms: Uniforms) -> tuple[Uniforms, Uniforms]:
        """Return the random numbers of the view, and those of the operations. Takes float64 [batch, all]."""
        return uniforms[:, : self.view.uniforms], uniforms[:, self.view.uniforms :]

    def sized(self, size: int | None) -> Recipe:
        """Return the recipe of images of `size` x `size`; itself for None."""
        return self if size is None else replace(self, view=self.view.sized(size))
