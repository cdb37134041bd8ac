"""The handwritten digits of scikit-learn (Alpaydin & Kaynak 1998): 1,797 real scans of 8x8, grey levels 0 to 16."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.base import Data, Request
from pipelines.common.errors import UserError
from pipelines.datasets.augmented import AugmentedSettings
from pipelines.datasets.in_memory import in_memory
from pipelines.settings import Side
from pipelines.sources.base import Arrays
from pipelines.views import Normalisation

ORDER = Path(__file__).with_name("digits_order.txt")
"""Numbers of the 1,437 training images, then of the 360 test images, split class by class by scikit-learn's
train_test_split with seed 20190609. A file, so that every run, with whatever version, is tested on the same images."""
SAMPLES, TRAIN_SAMPLES = 1_797, 1_437


class DigitsSettings(AugmentedSettings):
    """The 1,797 handwritten digits that ship with scikit-learn: 8x8 scans, upsampled in DALI."""

    in_memory: ClassVar[bool] = True
    name: Literal["digits"]
    image_size: Side = 28
    """Height and width to upsample to."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (1, self.image_size, self.image_size)

    @property
    def classes(self) -> int:
        return 10


def load() -> tuple[Arrays, Arrays]:
    """Return 1,437 training and 360 test images, uint8 [n, 8, 8, 1]. UserError without scikit-learn and its file."""
    table = _table()
    images = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, -1].astype(np.int64)
    train, test = np.split(np.array(ORDER.read_text().split(), np.int64), [TRAIN_SAMPLES])
    names = tuple(map(str, range(10)))
    return Arrays(images[train], labels[train], names), Arrays(images[test], labels[test], names)


def _table() -> NDArray[np.uint8]:
    """Return the 64 grey levels and the label of each image, uint8 [1797, 65].

    Read from scikit-learn's file, for to import it takes as long as half of torch. UserError if that is not there.
    """
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise UserError("data.name: digits needs scikit-learn; pip install scikit-learn")
    path = Path(spec.origin).with_name("datasets") / "data/digits.csv.gz"
    try:
        with gzip.open(path, "rt") as file:
            lines = file.read().splitlines()
        if len(lines) != SAMPLES:
            raise ValueError(f"it has {len(lines):,} lines, not {SAMPLES:,}")
        return np.loadtxt(lines, dtype=np.uint8, delimiter=",")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"data.name: {path}, the digits of scikit-learn, cannot be read ({error})") from None


def listed(settings: DigitsSettings) -> Arrays:
    """Return the training samples."""
    return load()[0]


def build(settings: DigitsSettings, request: Request) -> Data:
    """Return the pipelines. UserError as in `load`."""
    train, test = load()
    normalisation = Normalisation(mean=(float(train.images.mean()),), std=(float(train.images.std()),))
    size = (settings.image_size, settings.image_size)
    return in_memory(train, test, normalisation, settings, request, size)
