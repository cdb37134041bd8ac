"""Data sets that fit into memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipelines.base import Data, Request
from pipelines.ordered import assemble
from pipelines.settings import DataSetSettings
from pipelines.sources.base import Arrays
from pipelines.views import AsItIs, Normalisation, RandomCrop, Recipe


def in_memory(
    train: Arrays,
    test: Arrays,
    normalisation: Normalisation,
    settings: DataSetSettings,
    request: Request,
    size: tuple[int, int] | None = None,
) -> Data:
    """Return the pipelines without augmentation. Images are resized to `size` (height, width) if it is given."""
    plain, tested = (Recipe(arrays, AsItIs(size), normalisation) for arrays in (train, test))
    return assemble(plain, plain, tested, settings, request)


def random_crops(arrays: Arrays, normalisation: Normalisation, padding: int) -> Recipe:
    """Return a recipe of random crops of the original size, of images padded by reflection on each side."""
    room = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = replace(arrays, images=np.pad(arrays.images, room, mode="reflect"))
    height, width = arrays.images.shape[1:3]
    return Recipe(padded, RandomCrop((height, width), room=(2 * padding, 2 * padding)), normalisation)
