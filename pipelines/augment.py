"""Which part of an image is taken, as pure functions of its size and given random numbers.

DALI's graph computes the same (dali_views.py); what stands here serves every loader.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.order import Uniforms

# torchvision's RandomResizedCrop (after Szegedy et al. 2015).
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
ATTEMPTS = 10
WINDOW_UNIFORMS = 2 * ATTEMPTS + 2
"""Random numbers for one window: area and aspect of each attempt, then the place in height and in width."""

Window = tuple[int, int, int, int]
"""Top, left, height, width, in pixels."""


def mirrored(uniforms: Uniforms) -> NDArray[np.int32]:
    """int32 like `uniforms`: 1, mirror it, for half of the samples."""
    return (uniforms < 0.5).astype(np.int32)


def window_factors(uniforms: Uniforms) -> NDArray[np.float64]:
    """float64 [n, 2, ATTEMPTS], from [n, 2 * ATTEMPTS]: each attempt's (height, width) over sqrt(image area).

    The part that does not depend on the image. Area is uniform, aspect (width over height) log-uniform.
    """
    area = AREA[0] + (AREA[1] - AREA[0]) * uniforms[:, :ATTEMPTS]
    aspect = np.exp(np.log(ASPECT[0]) + (np.log(ASPECT[1]) - np.log(ASPECT[0])) * uniforms[:, ATTEMPTS:])
    factors: NDArray[np.float64] = np.sqrt(np.stack((area / aspect, area * aspect), axis=1))
    return factors


def random_window(height: int, width: int, factors: NDArray[np.float64], place: NDArray[np.float64]) -> Window:
    """The window to crop out of an image.

    `factors`: float64 [2, ATTEMPTS]. `place`: float64 [2] in [0, 1). The first
    attempt that fits into the image, at a uniform place (one draw does: it does
    not depend on the attempt). If none fits, the largest central window whose
    aspect is in range. Halves are rounded up. In float64, so that a window is
    off by one pixel about never.
    """
    image = np.array([height, width])
    attempts = np.floor(factors * np.sqrt(float(height) * width) + 0.5)
    fits = ((attempts >= 1) & (attempts <= image[:, None])).all(axis=0)
    if fits.any():
        size = attempts[:, fits.argmax()]
        anchor = np.floor(place * (image - size + 1))
    else:
        # Height at most 4/3 of the width, width at most 4/3 of the height.
        size = np.minimum(image, np.floor(image[::-1] * ASPECT[1] + 0.5))
        anchor = np.floor((image - size) / 2)
    return int(anchor[0]), int(anchor[1]), int(size[0]), int(size[1])


def shorter_side_resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) with the shorter side `shorter`, the other in proportion, rounded down (torchvision's Resize)."""
    if height <= width:
        return shorter, shorter * width // height
    return shorter * height // width, shorter


def central_window(height: int, width: int, size: int) -> Window:
    """The central `size` x `size`; half a pixel goes to the even neighbour (torchvision's CenterCrop)."""
    return round((height - size) / 2), round((width - size) / 2), size, size
