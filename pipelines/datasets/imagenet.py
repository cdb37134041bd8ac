"""ImageNet (Russakovsky et al. 2015), or any other folder of images with a subfolder a class."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipelines.base import Data, Request
from pipelines.datasets.photographs import PhotographSettings, photographs
from pipelines.sources.class_folders import check_folders, class_names
from pipelines.sources.excluded import Excluded
from pipelines.sources.image_folder import ImageFiles, list_images
from pipelines.sources.parts import TRAIN, Split


class ImagenetSettings(PhotographSettings):
    """A folder of images, such as ImageNet: train/CLASS/*.jpg and val/CLASS/*.jpg (or png, webp, bmp, tiff)."""

    name: Literal["imagenet"]

    def count_classes(self) -> int:
        return len(class_names(Path(self.path) / TRAIN))


def check_files(settings: ImagenetSettings) -> None:
    """Raise UserError unless each class folder holds an image, and `data.exclude` can be read."""
    check_folders(Path(settings.path), settings.classes, settings.validation_samples)
    Excluded.read(settings.exclude)


def listed(settings: ImagenetSettings) -> ImageFiles:
    """Return the training samples."""
    return _images(settings).train


def build(settings: ImagenetSettings, request: Request) -> Data:
    """Return the pipelines. Raises UserError if the folders or `data.exclude` cannot be used."""
    return photographs(_images(settings), settings, request)


def _images(settings: ImagenetSettings) -> Split[ImageFiles]:
    root = Path(settings.path)
    classes, parts = check_folders(root, settings.classes, settings.validation_samples)
    excluded = Excluded.read(settings.exclude)
    excluded.require_under(parts.there, root)
    return parts.split.map(lambda part: list_images(root, part, classes, excluded))
