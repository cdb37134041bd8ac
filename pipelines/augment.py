"""Windows of images that are cropped: pure functions of the image's size and of given random numbers.

DALI's graph computes the same (loaders/dali_views.py); these functions serve every loader.
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
"""Random numbers for one window: area and aspect ratio of each attempt, then the place in height and in width."""

Window = tuple[int, int, int, int]
"""Top, left, height, width, in pixels."""


def mirrored(uniforms: Uniforms) -> NDArray[np.int32]:
    """Return int32 like `uniforms`: 1 for half of the samples, which are mirrored, else 0."""
    return (uniforms < 0.5).astype(np.int32)


def window_factors(uniforms: Uniforms) -> NDArray[np.float64]:
    """Return each attempt's (height, width) over sqrt(image area), the part that does not depend on the image.

    Takes float64 [n, 2 * ATTEMPTS], returns float64 [n, 2, ATTEMPTS]. Area is uniform, aspect ratio (width over
    height) log-uniform.
    """
    area = AREA[0] + (AREA[1] - AREA[0]) * uniforms[:, :ATTEMPTS]
    aspect = np.exp(np.log(ASPECT[0]) + (np.log(ASPECT[1]) - np.log(ASPECT[0])) * uniforms[:, ATTEMPTS:])
    factors: NDArray[np.float64] = np.sqrt(np.stack((area / aspect, area * aspect), axis=1))
    return factors


def random_window(height: int, width: int, factors: NDArray[np.float64], place: NDArray[np.float64]) -> Window:
    """Return the window to crop out of an image.

    `factors`: float64 [2, ATTEMPTS]. `place`: float64 [2] in [0, 1). The window is the first attempt that fits into the
    image, at a uniform place: one draw is enough, for it does not depend on the attempt. If no attempt fits, it is the
    largest central window whose aspect ratio is in range. Halves are rounded up. float64 keeps rounding errors from
    moving a window by a pixel.

    Example: a 100 x 400 image and the factors (0.6, 1.0) make a window of 120 x 200, which is too high. (0.4, 0.7)
    make 80 x 140, which fits; at place (0.5, 0.5) it begins at (floor(0.5 * 21), floor(0.5 * 261)) = (10, 130).
    """
    image = np.array([height, width])
    attempts = np.floor(factors * np.sqrt(float(height) * width) + 0.5)
    fits = ((attempts >= 1) & (attempts <= image[:, None])).all(axis=0)
    if fits.any():
        size = attempts[:, fits.argmax()]
        anchor = np.floor(place * (image - size + 1))
    else:
        # The height is at most 4/3 of the width, and the width at most 4/3 of the height.
        size = np.minimum(image, np.floor(image[::-1] * ASPECT[1] + 0.5))
        anchor = np.floor((image - size) / 2)
    return int(anchor[0]), int(anchor[1]), int(size[0]), int(size[1])


def shorter_side_resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Return (height, width) with the shorter side `shorter`, the other in proportion and rounded down.

    As torchvision's Resize.
    """
    if height <= width:
        return shorter, shorter * width // height
    return shorter * height // width, shorter


def central_window(height: int, width: int, size: int) -> Window:
    """Return the central window of `size` x `size`. Half a pixel is rounded to even, as in torchvision's CenterCrop."""
    return round((height - size) / 2), round((width - size) / 2), size, size
