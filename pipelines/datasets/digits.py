"""The handwritten digits of scikit-learn (Alpaydin & Kaynak 1998): 1,797 real scans of 8x8, grey levels 0 to 16."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from pipelines.base import Data, Request
from pipelines.datasets.augmented import AugmentedSettings
from pipelines.datasets.in_memory import in_memory
from pipelines.settings import Side
from pipelines.sources.base import Arrays
from pipelines.views import Normalisation

TEST_SHARE = 0.2
SPLIT_SEED = 20190609  # Fixed: every run, whatever its seed, is tested on the same 360 images.


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
    """Return 1,437 training and 360 test images, uint8 [n, 8, 8, 1], split class by class."""
    # Only here: scikit-learn takes a second to import.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED
    )
    names = tuple(map(str, range(10)))
    return Arrays(images[train], labels[train], names), Arrays(images[test], labels[test], names)


def listed(settings: DigitsSettings) -> Arrays:
    """Return the training samples."""
    return load()[0]


def build(settings: DigitsSettings, request: Request) -> Data:
    """Return the pipelines. Nothing can be missing: the images are part of scikit-learn."""
    train, test = load()
    normalisation = Normalisation(mean=(float(train.images.mean()),), std=(float(train.images.std()),))
    size = (settings.image_size, settings.image_size)
    return in_memory(train, test, normalisation, settings, request, size)
