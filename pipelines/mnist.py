"""MNIST (LeCun et al. 1998), through torchvision's reader and, where there is internet, its download."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.base import Data, Request
from pipelines.config import DataError, MnistSettings
from pipelines.in_memory import in_memory
from pipelines.sources import Arrays, Listed
from pipelines.views import Normalisation

# Over the training set, in grey levels: the usual 0.1307 and 0.3081 of 255.
MEAN, STD = 0.1307 * 255, 0.3081 * 255

_FILES = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


SAMPLES = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
"""Of each class in the training set."""


def _missing(path: str) -> list[str]:
    return [name for name in _FILES if not (Path(path) / "MNIST" / "raw" / name).is_file()]


def check_files(path: str) -> None:
    """Raise DataError unless the four unpacked files are there."""
    missing = _missing(path)
    if missing:
        raise DataError(
            f"data.path: {Path(path) / 'MNIST' / 'raw'} lacks {', '.join(missing)}; "
            "put MNIST's unpacked files there, or set data.download=true where there is internet"
        )


def prepare(settings: MnistSettings) -> None:
    """Fetch the files if the settings allow it. One process a machine may do so at a time."""
    if settings.download:
        load(settings)
    else:
        check_files(settings.path)


def load(settings: MnistSettings) -> tuple[Arrays, Arrays]:
    """Training and test images, uint8 [n, 28, 28, 1]. Raises DataError for absent or damaged files."""
    from pipelines.torchvision_ops import import_torchvision

    import_torchvision()
    from torchvision.datasets import MNIST

    try:
        parts = [MNIST(settings.path, train=train, download=settings.download) for train in (True, False)]
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        remedy = "put its files there by hand" if settings.download else "remove it and fetch it anew"
        reason = " ".join(str(error).split())
        raise DataError(f"data.path: MNIST in {settings.path} cannot be read ({reason}); {remedy}") from None
    train, test = (Arrays(part.data.numpy()[..., np.newaxis], part.targets.numpy().astype(np.int64)) for part in parts)
    return train, test


def listed(settings: MnistSettings) -> Arrays | Listed:
    if settings.download and _missing(settings.path):
        return Listed(np.repeat(np.arange(10, dtype=np.int64), SAMPLES), listing=None)
    return load(settings)[0]


def build(settings: MnistSettings, request: Request) -> Data:
    train, test = load(settings)
    return in_memory(train, test, Normalisation((MEAN,), (STD,)), settings, request)
