"""CIFAR-10 (Krizhevsky 2009), through torchvision's reader and, where there is internet, its download."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from pipelines.base import Data, Request
from pipelines.common.errors import UserError
from pipelines.common.paths import PathText
from pipelines.common.torchvision_ops import import_torchvision
from pipelines.datasets.augmented import AugmentedSettings
from pipelines.datasets.in_memory import random_crops
from pipelines.ordered import assemble
from pipelines.sources.base import Arrays, Listed
from pipelines.sources.official_files import require_files, require_md5, require_no_others
from pipelines.views import AsItIs, Normalisation, Recipe

# Mean and standard deviation of each channel over the training set, in grey levels: the figures of the paper's code.
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
NORMALISATION = Normalisation(MEAN, STD)
PADDING = 4

_FOLDER, _ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
SAMPLES = 5000
"""Training samples of each class."""


class Cifar10Settings(AugmentedSettings):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 in colour, in torchvision's folder layout."""

    in_memory: ClassVar[bool] = True
    name: Literal["cifar10"]
    path: PathText = "data/cifar10"
    """Folder that holds (or will hold) cifar-10-batches-py."""
    download: bool = False
    """Fetch the files if they are not there."""
    augment: bool = True
    """Train on random crops of the padded images, half of them mirrored; false trains on the images as they are."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (3, 32, 32)

    @property
    def classes(self) -> int:
        return 10


def check_files(settings: Cifar10Settings) -> None:
    """Raise UserError unless the unpacked files of the Python version are there, or can be fetched.

    They are pickles: only those of the official archive are safe to open.
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
    """Return torchvision's class. Imported only here: it takes a second."""
    import_torchvision()
    from torchvision.datasets import CIFAR10

    return CIFAR10


def fetch(settings: Cifar10Settings) -> None:
    """Fetch the files if the settings allow it. Only one process a machine may call this at a time."""
    if settings.download:
        load(settings)
    else:
        _require_files(settings)


def load(settings: Cifar10Settings) -> tuple[Arrays, Arrays]:
    """Return training and test images, uint8 [n, 32, 32, 3]. Raises UserError for absent or damaged files.

    The files are pickles: torchvision opens only those with the MD5 of the official archive.
    """
    _require_files(settings)
    official = _reader()
    try:
        parts = [official(settings.path, train=train, download=settings.download) for train in (True, False)]
    except (OSError, RuntimeError, ValueError) as error:
        remedy = "put its files there by hand" if settings.download else "remove it and fetch it anew"
        reason = " ".join(str(error).split())
        raise UserError(f"data.path: CIFAR-10 in {settings.path} cannot be read ({reason}); {remedy}") from None
    # The files hold channel after channel, and torchvision gives a transposed view. DALI needs contiguous arrays.
    train, test = (
        Arrays(np.ascontiguousarray(part.data), np.array(part.targets, dtype=np.int64), tuple(part.classes))
        for part in parts
    )
    return train, test


def listed(settings: Cifar10Settings) -> Listed:
    """Return the labels and listing of the training samples.

    Files that a start would fetch, or fetch again since they are damaged, are taken to be the official ones.
    """
    try:
        train, _ = load(settings.model_copy(update={"download": False}))
    except UserError:
        if not settings.download:
            raise
        return Listed(np.repeat(np.arange(10, dtype=np.int64), SAMPLES), listing=None)
    trained = _trained_on(train)
    return Listed(train.labels, trained.listing, trained.earlier_listing)


def build(settings: Cifar10Settings, request: Request) -> Data:
    """Return the pipelines. Raises UserError for absent or damaged files."""
    train, test = load(settings)
    plain, tested = (Recipe(arrays, AsItIs(), NORMALISATION) for arrays in (train, test))
    trained = _trained_on(train)
    augmented = (
        random_crops(trained, NORMALISATION, PADDING) if settings.augment else Recipe(trained, AsItIs(), NORMALISATION)
    )
    return assemble(augmented, plain, tested, settings, request)


def _trained_on(train: Arrays) -> Arrays:
    """Return the training samples with the listing of padded images, padded or not: a run may go on without crops."""
    height, width, channels = train.images.shape[1:]
    padded = (height + 2 * PADDING, width + 2 * PADDING, channels)
    return replace(train, listed_shape=padded, earlier_shape=train.images.shape[1:])
