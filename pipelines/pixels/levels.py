"""Operations on the grey levels of each channel alone: posterize, solarize, auto contrast, equalize.

Images are uint8 [n, channels, height, width], magnitudes float32 [n, 1, 1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper bits of each level."""
    mask = 256 - torch.pow(2, 8 - bits)
    return images & mask.to(torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the levels from a threshold on, a share of 255."""
    return torch.where(images >= thresholds * 255, 255 - images, images)


def auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch the levels of each channel to 0 to 255. A channel of one level stays as it is."""
    values = images.float()
    least, most = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    step = (most - least) * (1 / 255)
    stretched = ((values - least) / torch.where(step == 0, 1.0, step)).clamp(0, 255).to(torch.uint8)
    return torch.where(most == least, images, stretched)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Spread the levels of each channel so that each range of them is as frequent, by Pillow's table.

    A level becomes (pixels below it + step // 2) // step, step = pixels under the channel's highest level // 255. With
    a step of 0 the channel stays as it is.

    Example: 1000 pixels of which 490 have the highest level: the step is 510 // 255 = 2. A level with 100 pixels below
    it becomes (100 + 1) // 2 = 50.
    """
    n, channels, height, width = images.shape
    flat = images.reshape(n * channels, height * width).long()
    counts = _histograms(flat)
    up_to = counts.cumsum(1)
    highest = counts.gather(1, flat.amax(1, keepdim=True))
    step = torch.div(height * width - highest, 255, rounding_mode="floor")
    divisor = step.clamp(min=1)
    spread = torch.div(up_to - counts + torch.div(step, 2, rounding_mode="floor"), divisor, rounding_mode="floor")
    same = torch.arange(256, device=images.device).expand_as(spread)
    table = torch.where(step == 0, same, spread.clamp(max=255)).to(torch.uint8)
    return table.gather(1, flat).view(images.shape)


def _histograms(flat: Tensor) -> Tensor:
    """Count the levels of each row of int64 [rows, pixels]: int64 [rows, 256].

    One long histogram for all: torch has a deterministic kernel for that on a GPU, and `bincount` waits for the GPU.
    """
    rows = len(flat)
    places = flat + 256 * torch.arange(rows, device=flat.device)[:, None]
    counts = torch.zeros(256 * rows, dtype=torch.int64, device=flat.device)
    ones = torch.ones(1, dtype=torch.int64, device=flat.device).expand(places.numel())
    return counts.scatter_add_(0, places.reshape(-1), ones).view(rows, 256)
