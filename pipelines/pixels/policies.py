"""Policies: which operation each sample gets, and how much of it. Pure functions of given random numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.order import Uniforms
from pipelines.pixels.tables import BINS, DRAWN, RANDOM, SIGNED, WIDE, Operation, Space

Round = tuple[NDArray[np.int64], NDArray[np.float64]]
"""One operation for each sample, int64 [batch], and its magnitude, float64 [batch]."""


class Policy(ABC):
    """Rounds of operations, one after another. Its random numbers are given to it."""

    stream: ClassVar[str]
    """Name of its random numbers: a policy does not change those of another."""

    @property
    @abstractmethod
    def uniforms(self) -> int:
        """Number of random numbers for a sample."""

    @abstractmethod
    def rounds(self, uniforms: Uniforms, height: int, width: int) -> Iterator[Round]:
        """Yield the rounds for images of this size in pixels, from float64 [batch, self.uniforms] in [0, 1)."""


@dataclass(frozen=True)
class TrivialAugment(Policy):
    """One operation of a random magnitude: TrivialAugmentWide (Müller & Hutter 2021)."""

    stream: ClassVar[str] = "trivial_augment"

    @property
    def uniforms(self) -> int:
        """Operation, magnitude, sign."""
        return 3

    def rounds(self, uniforms: Uniforms, height: int, width: int) -> Iterator[Round]:
        """Yield one round."""
        yield _drawn(WIDE, uniforms[:, 0], _index(uniforms[:, 1], BINS), uniforms[:, 2], height, width)


@dataclass(frozen=True)
class RandAugment(Policy):
    """Some operations, all of the same magnitude: RandAugment (Cubuk et al. 2019)."""

    operations: int
    magnitude: int
    """Place in the table: 0 is none, BINS - 1 the largest."""
    probability: float = 1.0
    """Probability of each operation to be applied."""
    stream: ClassVar[str] = "rand_augment"

    @property
    def uniforms(self) -> int:
        """Operation and sign, for each round; then whether it is applied, for each, where that is not certain."""
        return (2 if self.probability == 1 else 3) * self.operations

    def rounds(self, uniforms: Uniforms, height: int, width: int) -> Iterator[Round]:
        """Yield a round for each operation. The same one may be drawn twice, as in the paper."""
        bins, drawn = np.full(len(uniforms), self.magnitude, dtype=np.int64), 2 * self.operations
        choices = uniforms[:, :drawn].reshape(len(uniforms), self.operations, 2).transpose(1, 2, 0)
        for number, (operation, sign) in enumerate(choices):
            operations, magnitudes = _drawn(RANDOM, operation, bins, sign, height, width)
            if self.probability < 1:
                operations[uniforms[:, drawn + number] >= self.probability] = Operation.IDENTITY
            yield operations, magnitudes


@dataclass(frozen=True)
class ColorJitter(Policy):
    """Random brightness, contrast, saturation and hue, in a random order.

    A factor is uniform in 1 - x to 1 + x, but not below 0. The hue turns by -hue to hue, in turns of the colour circle.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    stream: ClassVar[str] = "color_jitter"
    OPERATIONS: ClassVar = np.array([Operation.BRIGHTNESS, Operation.CONTRAST, Operation.COLOR, Operation.HUE])

    @property
    def uniforms(self) -> int:
        """Place in the order and magnitude, for each of the four."""
        return 8

    def rounds(self, uniforms: Uniforms, height: int, width: int) -> Iterator[Round]:
        """Yield four rounds."""
        most = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        least = np.maximum(-most, -1.0)  # Magnitudes are distances from a factor of 1, which is 0 or more.
        magnitudes = least + (most - least) * uniforms[:, 4:]
        operations = np.where(most > 0, self.OPERATIONS, Operation.IDENTITY)
        for place in np.argsort(uniforms[:, :4], axis=1, kind="stable").T:
            yield operations[place].astype(np.int64), magnitudes[np.arange(len(place)), place]


def _drawn(
    space: Space,
    operation: NDArray[np.float64],
    bins: NDArray[np.int64],
    sign: NDArray[np.float64],
    height: int,
    width: int,
) -> Round:
    operations = _index(operation, DRAWN)
    magnitudes = space.magnitudes(height, width)[operations, bins]
    return operations, np.where(SIGNED[operations] & (sign < 0.5), -magnitudes, magnitudes)


def _index(uniforms: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Return int64 like `uniforms`, each of 0 to n - 1 equally likely."""
    return np.floor(uniforms * n).astype(np.int64)
