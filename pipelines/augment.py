"""Random crops and mirroring as pure functions of given random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, math, types

from pipelines.order import Uniforms

# torchvision's RandomResizedCrop (after Szegedy et al. 2015).
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
ATTEMPTS = 10
WINDOW_UNIFORMS = 2 * ATTEMPTS + 2
"""Random numbers for one window: area and aspect of each attempt, then the place in height and in width."""


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


def random_window(shape: Any, factors: Any, place: Any) -> tuple[Any, Any]:
    """DALI nodes (anchor, size), int64 [2] each, (height, width) in pixels, of the window to crop.

    `shape`: int64 [3], the image's (height, width, channels). `factors`:
    float64 [2, ATTEMPTS]. `place`: float64 [2] in [0, 1). The first attempt
    that fits into the image, at a uniform place (one draw does: it does not
    depend on the attempt). If none fits, the largest central window whose
    aspect is in range. Halves are rounded up. In float64, so that a window is
    off by one pixel about never.
    """
    height_width = fn.cast(fn.reshape(shape[:2], shape=[2, 1]), dtype=types.FLOAT64)
    width_height = fn.cast(fn.stack(shape[1:2], shape[:1]), dtype=types.FLOAT64)
    attempts = math.floor(factors * math.sqrt(height_width[0] * height_width[1]) + 0.5)
    # Height at most 4/3 of the width, width at most 4/3 of the height. It always fits, so it stands last.
    fallback = math.min(height_width, math.floor(width_height * ASPECT[1] + 0.5))
    sizes = fn.cat(attempts, fallback, axis=1)
    fits = (sizes >= 1.0) & (sizes <= height_width)
    unfit = (fits[0] & fits[1]) == 0
    chosen = fn.reductions.min(types.Constant(np.arange(ATTEMPTS + 1)) + unfit * ATTEMPTS)  # The first that fits.
    size = sizes[:, chosen]
    free = height_width[:, 0] - size
    central = chosen == ATTEMPTS
    anchor = central * math.floor(free * 0.5) + (central == 0) * math.floor(place * (free + 1.0))
    return fn.cast(anchor, dtype=types.INT64), fn.cast(size, dtype=types.INT64)
