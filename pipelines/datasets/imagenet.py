"""ImageNet (Russakovsky et al. 2015), or any other folder of images with a subfolder a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pipelines.base import Data, Request
from pipelines.datasets.settings import ImagenetSettings, PhotographSettings
from pipelines.ordered import assemble
from pipelines.sources.base import Encoded
from pipelines.sources.excluded import Excluded
from pipelines.sources.image_folder import ImageFiles, check_folders, list_images
from pipelines.sources.parts import Parts
from pipelines.views import CentralCrop, Normalisation, RandomResizedCrop, Recipe

# Of ImageNet's training set, as shares of 255: torchvision's figures.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATION = Normalisation(tuple(255 * x for x in MEAN), tuple(255 * x for x in STD))


S = TypeVar("S", bound=Encoded, covariant=True)


@dataclass(frozen=True)
class Photographs(Generic[S]):
    """The sources of a data set, by what they are for (parts.py)."""

    train: S
    test: S | None
    validation: S | None


def sources_of(parts: Parts, source: Callable[[str], S]) -> Photographs[S]:
    """One for each part that is there."""
    test, validation = (None if part is None else source(part) for part in (parts.test, parts.validation))
    return Photographs(source(parts.train), test, validation)


def photographs(sources: Photographs[Encoded], settings: PhotographSettings, request: Request) -> Data:
    """The pipelines of photographs, wherever they lie."""

    central = CentralCrop(settings.image_size, settings.evaluation_resize)
    plain = Recipe(sources.train, central, NORMALISATION)
    window = RandomResizedCrop(settings.image_size)
    augmented = Recipe(sources.train, window, NORMALISATION) if settings.augment else plain
    test, validation = (
        None if source is None else Recipe(source, central, NORMALISATION)
        for source in (sources.test, sources.validation)
    )
    return assemble(augmented, plain, test, settings, request, validation)


def listed(settings: ImagenetSettings) -> ImageFiles:
    return _images(settings).train


def build(settings: ImagenetSettings, request: Request) -> Data:
    return photographs(_images(settings), settings, request)


def _images(settings: ImagenetSettings) -> Photographs[ImageFiles]:
    root = Path(settings.path)
    classes, parts = check_folders(root, settings.classes, settings.validation_samples)
    excluded = Excluded.read(settings.exclude)
    excluded.require_under(parts.there, root)

    return sources_of(parts, lambda part: list_images(root, part, classes, excluded))
