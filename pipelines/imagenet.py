"""ImageNet (Russakovsky et al. 2015), or any other folder of images with a subfolder a class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types

from pipelines import augment
from pipelines.base import Data, Request
from pipelines.config import ImagenetSettings
from pipelines.image_folder import ImageFiles, check_folders, list_images
from pipelines.in_memory import Transform
from pipelines.order import Indices, Uniforms
from pipelines.ordered import assemble
from pipelines.recipe import Input, Recipe, on_gpu

# Of ImageNet's training set, as shares of 255: torchvision's figures.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISE = Transform(tuple(255 * x for x in MEAN), tuple(255 * x for x in STD))

PATH = Input(types.UINT8, ndim=1)


def contents(paths: Any) -> Any:
    """The bytes of files. Not mapped into memory: one that shrinks while it is read would end the process (SIGBUS)."""
    return fn.io.file.read(paths, dont_use_mmap=True)


def decoding() -> dict[str, Any]:
    """What all decoders are told. EXIF orientation is honoured by default; fancy upsampling makes GPU and CPU agree."""
    options: dict[str, Any] = {"output_type": types.RGB, "jpeg_fancy_upsampling": True}
    if not on_gpu():
        return {"device": "cpu", **options}
    # Room for the largest image of ImageNet from the start: memory that grew with it would grow in mid-run.
    return {"device": "mixed", **options, "preallocate_width_hint": 5980, "preallocate_height_hint": 6430}


def resized(images: Any, **size: Any) -> Any:
    """float32 images, linear with antialiasing, as torchvision resizes."""
    return fn.resize(images, **size, interp_type=types.INTERP_LINEAR, antialias=True, dtype=types.FLOAT)


@dataclass(frozen=True)
class CentralCrop(Recipe):
    """As evaluation sees an image: the shorter side resized to `resize`, then the central `size` x `size`."""

    files: ImageFiles
    size: int
    resize: int

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.files.labels

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (PATH,)

    def read(self, indices: Indices, uniforms: Uniforms) -> tuple[Any, ...]:
        return ([self.files.path(index) for index in indices],)

    def images(self, *inputs: Any) -> Any:
        images = fn.decoders.image(contents(*inputs), **decoding())
        return NORMALISE.normalised(resized(images, resize_shorter=self.resize), crop=(self.size, self.size))


@dataclass(frozen=True)
class RandomResizedCrop(Recipe):
    """A random window of an image, resized to `size` x `size`, mirrored half of the time."""

    files: ImageFiles
    size: int
    uniforms: ClassVar[int] = augment.WINDOW_UNIFORMS + 1

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.files.labels

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (PATH, Input(types.FLOAT64, ndim=2), Input(types.FLOAT64, ndim=1), Input(types.INT32, ndim=0))

    def read(self, indices: Indices, uniforms: Uniforms) -> tuple[Any, ...]:
        shape, place, mirror = np.split(uniforms, [2 * augment.ATTEMPTS, augment.WINDOW_UNIFORMS], axis=1)
        paths = [self.files.path(index) for index in indices]
        return paths, augment.window_factors(shape), place.copy(), augment.mirrored(mirror[:, 0])

    def images(self, *inputs: Any) -> Any:
        paths, factors, place, mirror = inputs
        encoded = contents(paths)
        anchor, size = augment.random_window(fn.peek_image_shape(encoded), factors, place)
        images = fn.decoders.image_slice(encoded, anchor, size, axis_names="HW", **decoding())
        return NORMALISE.normalised(resized(images, size=(self.size, self.size)), mirror=mirror)


def build(settings: ImagenetSettings, request: Request) -> Data:
    classes = check_folders(settings.path, settings.number_of_classes)
    train, val = (list_images(Path(settings.path) / part, classes) for part in ("train", "val"))
    plain = CentralCrop(train, settings.image_size, settings.evaluation_resize)
    augmented = RandomResizedCrop(train, settings.image_size) if settings.augment else plain
    test = CentralCrop(val, settings.image_size, settings.evaluation_resize)
    return assemble(augmented, plain, test, settings, request)
