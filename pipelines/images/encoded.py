"""Encoded images in memory, and how large they may be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
"""uint8 [bytes]."""

MOST_PIXELS = 60_000_000
"""Pixels of the largest image, unless `data.most_pixels` says otherwise: nearly all photographs have fewer."""


def most_bytes(pixels: int) -> int:
    """Return the size, in bytes, of the largest file that is read for an image of `pixels` pixels.

    With 8 bits a channel no image takes more.
    """
    return 4 * pixels + (1 << 20)


MOST_BYTES = most_bytes(MOST_PIXELS)
