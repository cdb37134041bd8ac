"""Small images of one size in folders by class, such as CIFAR-10 as PNG or JPEG files: decoded once, held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from pipelines.base import Data, Request
from pipelines.common.errors import UserError
from pipelines.common.paths import PathText
from pipelines.datasets.in_memory import random_crops
from pipelines.datasets.stored import StoredSettings
from pipelines.images.encoded import MOST_PIXELS, most_bytes
from pipelines.ordered import assemble
from pipelines.settings import Side
from pipelines.sources.base import Arrays
from pipelines.sources.class_folders import check_folders, class_names
from pipelines.sources.image_folder import ImageFiles, list_images
from pipelines.sources.parts import TRAIN
from pipelines.views import AsItIs, Normalisation, Recipe

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_MEMORY = 16 << 30
"""Most bytes of pixels that are held. `data.name: imagenet` reads more from the disk as it goes."""
AT_ONCE = 1 << 24
"""Bytes of pixels that are counted at once."""


class SmallImagesSettings(StoredSettings):
    """A folder of small images, all of one size: train/CLASS/*.png and test/CLASS/*.png (or jpg, webp, bmp, tiff)."""

    in_memory: ClassVar[bool] = True
    name: Literal["small_images"]
    path: PathText = "data/small_images"
    """Folder that holds train and, to evaluate on, val (or valid, validation), test, or both."""
    image_size: Side = 32
    """Height and width of every image."""
    augment: bool = True
    """Train on random crops of the padded images, half of them mirrored; false trains on the images as they are."""
    padding: Side = 4
    """Pixels by which each side is padded, by reflection, for the random crops."""

    @model_validator(mode="after")
    def _pads(self) -> Self:
        if not self.augment and self.padding != type(self).model_fields["padding"].default:
            raise ValueError(
                f"augment is false, and padding is {self.padding}; images that are not cropped are not padded: leave "
                f"it out, or set augment=true"
            )
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (3, self.image_size, self.image_size)

    def count_classes(self) -> int:
        return len(class_names(Path(self.path) / TRAIN))


@dataclass(frozen=True)
class Pictures(Arrays):
    """Images in memory that have the names and the listing of their files."""

    files: ImageFiles | None = None

    @property
    def listing(self) -> str:
        assert self.files is not None
        return self.files.listing

    def name(self, index: int) -> str:
        assert self.files is not None
        return self.files.name(index)


def check_files(settings: SmallImagesSettings) -> None:
    """Raise UserError unless each class folder holds an image."""
    check_folders(Path(settings.path), settings.classes, settings.validation_samples)


def listed(settings: SmallImagesSettings) -> ImageFiles:
    """Return the training samples."""
    classes, parts = check_folders(Path(settings.path), settings.classes, settings.validation_samples)
    return list_images(Path(settings.path), parts.train, classes)


def build(settings: SmallImagesSettings, request: Request) -> Data:
    """Return the pipelines. Raises UserError for a file that is no image of the size, naming it."""
    classes, parts = check_folders(Path(settings.path), settings.classes, settings.validation_samples)

    listed = [
        None if part is None else list_images(Path(settings.path), part, classes)
        for part in (parts.train, parts.test, parts.validation)
    ]
    _require_memory(listed, settings)
    train, test, validation = (None if files is None else _decoded(files, settings) for files in listed)
    assert train is not None
    normalisation = request.normalisation or normalisation_of(train.images)
    plain = Recipe(train, AsItIs(), normalisation)
    others = [None if source is None else Recipe(source, AsItIs(), normalisation) for source in (test, validation)]
    augmented = random_crops(train, normalisation, settings.padding) if settings.augment else plain
    return assemble(augmented, plain, others[0], settings, request, others[1])


def _require_memory(listed: Sequence[ImageFiles | None], settings: SmallImagesSettings) -> None:
    """Raise UserError if the images of all parts, and the padded ones of training, take too much memory."""
    counts, size = [len(files.labels) for files in listed if files is not None], settings.image_size
    padded = counts[0] * (size + 2 * settings.padding) ** 2 if settings.augment else 0
    if (needed := 3 * (sum(counts) * size * size + padded)) > MOST_MEMORY:
        raise UserError(
            f"{settings.where}: {sum(counts):,} images of {size}x{size} take {needed / 2**30:.0f} GiB in memory; "
            "use data.name: imagenet, which reads them from the disk"
        )


def _decoded(files: ImageFiles, settings: SmallImagesSettings) -> Pictures:
    """Decode all images, in threads. Raises UserError for the first that is not good or not of the size."""
    count, size = len(files.labels), settings.image_size
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    with ThreadPoolExecutor(settings.threads) as pool:
        for index, pixels in enumerate(pool.map(partial(_pixels, files, size), range(count))):
            images[index] = pixels
    return Pictures(images, files.labels, files.class_names, files=files)


def _pixels(files: ImageFiles, size: int, index: int) -> NDArray[np.uint8]:
    """Return an image, uint8 [size, size, 3]. Raises UserError."""
    from pipelines.images.reference import decoded, rgb  # Only here: a config is validated without Pillow.
    from pipelines.sources.faults import fault, read

    name = files.name(index)
    try:
        image = rgb(decoded(read(files, index, most_bytes(MOST_PIXELS)), MOST_PIXELS))
        image.load()
    except UserError:
        raise
    except Exception:
        if (problem := fault(files, index, MOST_PIXELS)) is None:
            raise  # The image is good: it is another error.
        raise UserError(f"{name} {problem}; mend it, or remove it") from None
    if image.size != (size, size):
        raise UserError(
            f"{name} is {image.width}x{image.height}, not {size}x{size}; set data.image_size, or use data.name: "
            "imagenet, which takes images of any size"
        )
    return np.asarray(image)


def normalisation_of(images: NDArray[np.uint8]) -> Normalisation:
    """Return mean and standard deviation of each channel, in grey levels."""
    counts = np.zeros((3, 256), dtype=np.int64)
    for block in np.array_split(images, 1 + images.nbytes // AT_ONCE):
        for channel in range(3):  # Of whole numbers of 8 bytes, which it makes of the pixels.
            counts[channel] += np.bincount(block[..., channel].reshape(-1), minlength=256)
    levels = np.arange(256)
    means = [float(np.average(levels, weights=count)) for count in counts]
    variances = (np.average((levels - mean) ** 2, weights=count) for mean, count in zip(means, counts, strict=True))
    return Normalisation(tuple(means), tuple(max(1.0, float(variance) ** 0.5) for variance in variances))
