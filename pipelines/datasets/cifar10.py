"""CIFAR-10 (Krizhevsky 2009), through torchvision's reader and, where there is internet, its download."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.base import Data, Request
from pipelines.common.errors import UserError
from pipelines.datasets.settings import Cifar10Settings
from pipelines.ordered import assemble
from pipelines.sources.base import Arrays, Listed, listing_of_arrays
from pipelines.sources.official_files import require_files, require_md5, require_no_others
from pipelines.views import AsItIs, Normalisation, RandomCrop, Recipe

# Of each channel over the pixels of the training set, in grey levels: those of the paper's code.
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
NORMALISATION = Normalisation(MEAN, STD)
PADDING = 4

_FOLDER, _ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]


SAMPLES = 5000
"""Of each class in the training set."""


def check_files(settings: Cifar10Settings) -> None:
    """Raise UserError unless the unpacked files of the Python version are there, or can be fetched.

    They are pickles, which only those of the official archive are safe to open.
    """
    _require_files(settings)
    if not settings.download:
        official = _reader()
        known = [*official.train_list, *official.test_list, (official.meta["filename"], official.meta["md5"])]
        for name, md5 in known:
            require_md5(Path(settings.path) / _FOLDER / name, md5, "CIFAR-10's")


def _require_files(settings: Cifar10Settings) -> None:
    folder = Path(settings.path) / _FOLDER
    if settings.download:
        require_no_others([Path(settings.path) / _ARCHIVE, *(folder / name for name in _FILES)])
    else:
        require_files(folder, _FILES, "unpack CIFAR-10's Python version there")


def _reader() -> Any:
    """Torchvision's."""
    from pipelines.loaders.torchvision_ops import import_torchvision

    import_torchvision()
    from torchvision.datasets import CIFAR10

    return CIFAR10


def prepare(settings: Cifar10Settings) -> None:
    """Fetch the files if the settings allow it. One process a machine may do so at a time."""
    if settings.download:
        load(settings)
    else:
        _require_files(settings)


def load(settings: Cifar10Settings) -> tuple[Arrays, Arrays]:
    """Training and test images, uint8 [n, 32, 32, 3]. Raises UserError for absent or damaged files.

    The files are pickles: torchvision opens none whose MD5 is not that of the official archive.
    """
    _require_files(settings)
    official = _reader()
    try:
        parts = [official(settings.path, train=train, download=settings.download) for train in (True, False)]
    except (OSError, RuntimeError, ValueError) as error:
        remedy = "put its files there by hand" if settings.download else "remove it and fetch it anew"
        reason = " ".join(str(error).split())
        raise UserError(f"data.path: CIFAR-10 in {settings.path} cannot be read ({reason}); {remedy}") from None
    # The files hold channel after channel; torchvision gives a view of that, DALI takes only what lies as it reads.
    train, test = (
        Arrays(np.ascontiguousarray(part.data), np.array(part.targets, dtype=np.int64), tuple(part.classes))
        for part in parts
    )
    return train, test


def listed(settings: Cifar10Settings) -> Listed:
    """Without padding. What a start would fetch, damaged files too, is taken to be as it should."""
    try:
        train, _ = load(settings.model_copy(update={"download": False}))
    except UserError:
        if not settings.download:
            raise
        return Listed(np.repeat(np.arange(10, dtype=np.int64), SAMPLES), listing=None)
    height, width, channels = train.images.shape[1:]
    room = 2 * PADDING if settings.augment else 0
    return Listed(train.labels, listing_of_arrays((height + room, width + room, channels), train.labels))


def build(settings: Cifar10Settings, request: Request) -> Data:
    train, test = load(settings)
    plain, tested = (Recipe(arrays, AsItIs(), NORMALISATION) for arrays in (train, test))
    return assemble(random_crops(train) if settings.augment else plain, plain, tested, settings, request)


def random_crops(arrays: Arrays) -> Recipe:
    """Crops of the images' own size, out of the images padded by reflection."""
    padding = ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0))
    padded = replace(arrays, images=np.pad(arrays.images, padding, mode="reflect"))
    height, width = arrays.images.shape[1:3]
    return Recipe(padded, RandomCrop((height, width), room=(2 * PADDING, 2 * PADDING)), NORMALISATION)
