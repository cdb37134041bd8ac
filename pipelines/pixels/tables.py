"""Tables of operations and magnitudes, as in torchvision's transforms v2."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

BINS = 31
"""Magnitudes of an operation, from none to the largest."""


class Operation(IntEnum):
    """An operation on the pixels of an image. A policy draws from the first fourteen."""

    IDENTITY = 0
    SHEAR_X = 1
    SHEAR_Y = 2
    TRANSLATE_X = 3
    TRANSLATE_Y = 4
    ROTATE = 5
    BRIGHTNESS = 6
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10
    SOLARIZE = 11
    AUTO_CONTRAST = 12
    EQUALIZE = 13
    HUE = 14


DRAWN = Operation.HUE.value
"""Number of operations that a policy draws from."""
SIGNED = np.array([Operation.SHEAR_X <= operation <= Operation.SHARPNESS for operation in range(DRAWN)])
"""Bool [DRAWN]: operations whose magnitude is negated half of the time."""


@dataclass(frozen=True)
class Space:
    """The largest magnitudes of a policy."""

    shear: float
    """Pixels by which a row or column moves for each pixel of distance."""
    translate: float
    """Pixels, or a share of the side if `in_shares`."""
    in_shares: bool
    rotate: float
    """Degrees."""
    factor: float
    """Distance from 1 of the factor of brightness, color, contrast and sharpness."""
    bits: int
    """Bits that posterize removes."""

    def magnitudes(self, height: int, width: int) -> NDArray[np.float64]:
        """Return float64 [DRAWN, BINS] for images of this size in pixels. Posterize: bits kept; solarize: a share."""
        table = np.zeros((DRAWN, BINS))
        sides = (width, height) if self.in_shares else (1, 1)
        table[Operation.SHEAR_X : Operation.SHEAR_Y + 1] = _steps(0, self.shear)
        table[Operation.TRANSLATE_X], table[Operation.TRANSLATE_Y] = (_steps(0, self.translate * n) for n in sides)
        table[Operation.ROTATE] = _steps(0, self.rotate)
        table[Operation.BRIGHTNESS : Operation.SHARPNESS + 1] = _steps(0, self.factor)
        table[Operation.POSTERIZE] = np.rint(8 - np.arange(BINS) / ((BINS - 1) / self.bits))
        table[Operation.SOLARIZE] = _steps(1, 0)
        return table


def _steps(first: float, last: float) -> NDArray[np.float64]:
    """Return float64 [BINS], evenly spaced. Torch's rounding matters: translations are cut to whole pixels."""
    found: NDArray[np.float64] = torch.linspace(first, last, BINS).double().numpy()
    return found


WIDE = Space(shear=0.99, translate=32.0, in_shares=False, rotate=135.0, factor=0.99, bits=6)
"""TrivialAugment's wide space (Müller & Hutter 2021)."""
RANDOM = Space(shear=0.3, translate=150 / 331, in_shares=True, rotate=30.0, factor=0.9, bits=4)
"""RandAugment's (Cubuk et al. 2019). The share is 150 pixels of 331, the width that AutoAugment searched at."""
