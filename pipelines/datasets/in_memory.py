"""Data sets that fit into memory, without augmentation."""

from __future__ import annotations

from pipelines.base import Data, Request
from pipelines.ordered import assemble
from pipelines.settings import DataSetSettings
from pipelines.sources.base import Arrays
from pipelines.views import AsItIs, Normalisation, Recipe


def in_memory(
    train: Arrays,
    test: Arrays,
    normalisation: Normalisation,
    settings: DataSetSettings,
    request: Request,
    size: tuple[int, int] | None = None,
) -> Data:
    """Return the pipelines. Images are resized to `size` (height, width) if it is given."""
    plain, tested = (Recipe(arrays, AsItIs(size), normalisation) for arrays in (train, test))
    return assemble(plain, plain, tested, settings, request)
