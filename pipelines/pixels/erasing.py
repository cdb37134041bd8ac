"""Random erasing (Zhong et al. 2020): a window of a normalised image is set to 0, the mean colour, or to noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.order import Uniforms, generator

Value = Literal["zero", "random"]
AREA, ASPECT, ATTEMPTS = (0.02, 0.33), (0.3, 3.3), 10
"""Share of the image, height over width, and attempts to fit: torchvision's."""
LEAST_NOISE = 1 << 20
"""Values of the noise that windows are taken from."""

Window = tuple[int, int, int, int]
"""Top, left, height, width, in pixels."""


@dataclass(frozen=True)
class Erasing:
    """Erases a window of some images. Its random numbers are given to it."""

    probability: float
    value: Value = "zero"
    stream: ClassVar[str] = "random_erasing"
    uniforms: ClassVar[int] = 2 * ATTEMPTS + 4
    """Areas and aspect ratios; top and left; whether; where in the noise."""

    def windows(self, uniforms: Uniforms, height: int, width: int) -> Iterator[tuple[int, Window]]:
        """Yield place in the batch and window of the images that lose one, from float64 [batch, self.uniforms].

        A window is the first attempt smaller than the image both ways. If none is, the image stays whole.
        """
        for place in np.flatnonzero(uniforms[:, 2 * ATTEMPTS + 2] < self.probability).tolist():
            window = _window(uniforms[place], height, width)
            if window is not None:
                yield place, window

    def erase(self, images: Tensor, uniforms: Uniforms) -> None:
        """Change normalised images, float [batch, channels, height, width]."""
        channels, height, width = images.shape[1:]
        for place, (top, left, h, w) in self.windows(uniforms, height, width):
            window = images[place, :, top : top + h, left : left + w]
            if self.value == "zero":
                window.zero_()
            else:
                values = noise(images[0].numel(), images.device)
                start = int(uniforms[place, -1] * (len(values) // 2))
                window.copy_(values[start : start + channels * h * w].view(channels, h, w))


def _window(uniforms: NDArray[np.float64], height: int, width: int) -> Window | None:
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * uniforms[:ATTEMPTS])
    low, high = np.log(ASPECT)
    aspect = np.exp(low + (high - low) * uniforms[ATTEMPTS : 2 * ATTEMPTS])
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (heights < height) & (widths < width)
    if not fits.any():
        return None
    h, w = int(heights[fits.argmax()]), int(widths[fits.argmax()])
    top, left = (int(u * (n + 1)) for u, n in zip(uniforms[2 * ATTEMPTS :], (height - h, width - w), strict=False))
    return top, left, h, w


@lru_cache(maxsize=4)
def noise(least: int, device: torch.device) -> Tensor:
    """Return standard normal numbers, float32, twice in a row: `least` of them follow each place of the first half.

    They are always the same; where a window begins in them is its random number. Drawing them anew for each window
    would take longer than decoding the image.
    """
    size = max(LEAST_NOISE, 1 << (least - 1).bit_length())
    words = generator("random erasing").random_raw(size)
    uniform = ((words >> 11) + 1).astype(np.float64) * 2.0**-53  # In (0, 1]: the logarithm is finite.
    radius, angle = np.sqrt(-2 * np.log(uniform[: size // 2])), 2 * np.pi * uniform[size // 2 :]
    normal = np.concatenate((radius * np.cos(angle), radius * np.sin(angle))).astype(np.float32)
    return torch.from_numpy(np.concatenate((normal, normal))).to(device)
