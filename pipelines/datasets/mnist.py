"""MNIST (LeCun et al. 1998), and other data in files of its format. Torchvision fetches it on request."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.base import Data, Request
from pipelines.common.errors import UserError
from pipelines.common.files import read_bytes
from pipelines.common.paths import PathText
from pipelines.common.torchvision_ops import import_torchvision
from pipelines.datasets.augmented import AugmentedSettings
from pipelines.datasets.in_memory import in_memory
from pipelines.sources.base import Arrays, Listed
from pipelines.sources.official_files import LARGEST, require_files, require_no_others
from pipelines.views import Normalisation

# Mean and standard deviation over the training set, in grey levels: the usual 0.1307 and 0.3081 of 255.
MEAN, STD = 0.1307 * 255, 0.3081 * 255

_PARTS = ("train", "t10k")
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_FILES = [f"{part}-{kind}" for part in _PARTS for kind in (_IMAGES, _LABELS)]
_SIDE = 28
SAMPLES = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
"""Training samples of each class."""


class MnistSettings(AugmentedSettings):
    """MNIST: 60,000 training and 10,000 test images of 28x28, in torchvision's folder layout."""

    in_memory: ClassVar[bool] = True
    name: Literal["mnist"]
    path: PathText = "data/mnist"
    """Folder that holds (or will hold) MNIST/raw."""
    download: bool = False
    """Fetch the files if they are not there."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (1, 28, 28)

    @property
    def classes(self) -> int:
        return 10


def check_files(settings: MnistSettings) -> None:
    """Raise UserError unless the four unpacked files are there and can be read, or can be fetched."""
    _require_files(settings)
    if not settings.download:
        read(_folder(settings))


def _require_files(settings: MnistSettings) -> None:
    folder = _folder(settings)
    if settings.download:
        require_no_others(folder / f"{name}{packed}" for name in _FILES for packed in ("", ".gz"))
    else:
        require_files(folder, _FILES, "put MNIST's unpacked files there")


def _folder(settings: MnistSettings) -> Path:
    return Path(settings.path) / "MNIST" / "raw"


def _is_there(settings: MnistSettings) -> bool:
    return all((_folder(settings) / name).is_file() for name in _FILES)


def fetch(settings: MnistSettings) -> None:
    """Fetch the files if the settings allow it. Only one process a machine may call this at a time."""
    _require_files(settings)
    if settings.download and not _is_there(settings):
        _fetch(settings)


def _fetch(settings: MnistSettings) -> None:
    import_torchvision()
    from torchvision.datasets import MNIST  # Only here: it takes a second.

    try:
        MNIST(settings.path, download=True)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.path: MNIST in {settings.path} cannot be fetched ({reason}); put its files there by hand"
        ) from None


def load(settings: MnistSettings) -> tuple[Arrays, Arrays]:
    """Return training and test images, uint8 [n, 28, 28, 1]. Raises UserError for absent or damaged files."""
    fetch(settings)
    return read(_folder(settings))


def read(folder: Path) -> tuple[Arrays, Arrays]:
    """Read training and test images from unpacked files. They have no checksums, so number and range are checked."""
    train, test = (_part(folder / f"{part}-{_IMAGES}", folder / f"{part}-{_LABELS}") for part in _PARTS)
    return train, test


def _part(images: Path, labels: Path) -> Arrays:
    pixels = _array(images, rank=3)
    classes = _array(labels, rank=1)
    if pixels.shape[1:] != (_SIDE, _SIDE) or len(pixels) == 0:
        raise _unusable(images, f"it holds {len(pixels)} images of {pixels.shape[1]}x{pixels.shape[2]}, not of 28x28")
    if len(classes) != len(pixels):
        raise _unusable(labels, f"it holds {len(classes)} labels, {images.name} {len(pixels)} images")
    if (largest := int(classes.max())) > 9:
        raise _unusable(labels, f"it holds label {largest}, and labels go from 0 to 9")
    return Arrays(pixels[..., np.newaxis], classes.astype(np.int64))


def _array(path: Path, rank: int) -> NDArray[np.uint8]:
    """Read an array of bytes in IDX format: 0, 0, 8 for bytes, the rank; then each size in four bytes, big-endian."""
    try:
        content = read_bytes(path, LARGEST)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from None
    start = 4 + 4 * rank
    if content[:4] != bytes((0, 0, 8, rank)) or len(content) < start:
        raise _unusable(path, f"it is no file of bytes in {rank} dimensions")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) - start != prod(shape):
        raise _unusable(path, f"its header says {' x '.join(map(str, shape))}, it has {len(content) - start} bytes")
    found: NDArray[np.uint8] = np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
    return np.array(found)


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(f"data.path: MNIST in {path} cannot be read ({reason}); remove it and fetch it anew")


def listed(settings: MnistSettings) -> Arrays | Listed:
    """Return the training samples, or only their labels if the files are still to be fetched."""
    if settings.download and not _is_there(settings):
        return Listed(np.repeat(np.arange(10, dtype=np.int64), SAMPLES), listing=None)
    return load(settings)[0]


def build(settings: MnistSettings, request: Request) -> Data:
    """Return the pipelines. Raises UserError for absent or damaged files."""
    train, test = load(settings)
    return in_memory(train, test, Normalisation((MEAN,), (STD,)), settings, request)
