"""ImageNet (Russakovsky et al. 2015), or any other folder of images with a subfolder a class."""

from __future__ import annotations

from pathlib import Path

from pipelines.base import Data, Request
from pipelines.config import ImagenetSettings, PhotographSettings
from pipelines.excluded import Excluded
from pipelines.image_folder import ImageFiles, check_folders, list_images
from pipelines.ordered import assemble
from pipelines.sources import Encoded
from pipelines.views import CentralCrop, Normalisation, RandomResizedCrop, Recipe

# Of ImageNet's training set, as shares of 255: torchvision's figures.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATION = Normalisation(tuple(255 * x for x in MEAN), tuple(255 * x for x in STD))


def photographs(train: Encoded, val: Encoded, settings: PhotographSettings, request: Request) -> Data:
    """The pipelines of photographs, wherever they lie."""
    central = CentralCrop(settings.image_size, settings.evaluation_resize)
    plain, test = (Recipe(source, central, NORMALISATION) for source in (train, val))
    augmented = Recipe(train, RandomResizedCrop(settings.image_size), NORMALISATION) if settings.augment else plain
    return assemble(augmented, plain, test, settings, request)


def listed(settings: ImagenetSettings) -> ImageFiles:
    return _images(settings)[0]


def build(settings: ImagenetSettings, request: Request) -> Data:
    return photographs(*_images(settings), settings, request)


def _images(settings: ImagenetSettings) -> tuple[ImageFiles, ImageFiles]:
    """Those of train and of val."""
    classes = check_folders(settings.path, settings.number_of_classes)
    excluded = Excluded.read(settings.exclude)
    root = Path(settings.path)
    return list_images(root, "train", classes, excluded), list_images(root, "val", classes, excluded)
