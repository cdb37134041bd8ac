"""Operations that mix a picture with another: brightness, color, contrast, sharpness; and the hue.

Images are uint8 [n, 1 or 3, height, width], factors float64 [n, 1, 1, 1], turns float32. Results are cut to whole grey
levels, as torchvision does. Each product and each sum is a kernel of its own: then a pixel does not depend on its place
in a batch, and GPU and CPU agree. A kernel that does both may fuse them in one part of a batch, and not in another.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from pipelines.pixels.tables import Operation

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in a grey level (ITU-R BT.601)."""
_JUST_UNDER = 255.999 / 255
"""Scale of grey levels before they are cut: then 255 shares of a level are equally wide."""


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Mix with black."""
    return levels(images.float() * factors.float())


def color(images: Tensor, factors: Tensor) -> Tensor:
    """Mix with the grey picture. A picture without colours stays as it is."""
    return images if images.shape[1] == 1 else mixed(images.float(), grey(images), factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Mix with the mean grey level. Its sum is one of whole numbers, the same in any order."""
    greys = grey(images)
    mean = greys.sum((1, 2, 3), keepdim=True, dtype=torch.float64) / greys[0].numel()
    return mixed(images.float(), mean.float(), factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Mix with the smoothed picture: the mean over 3 x 3 pixels in which the middle one counts 5 times.

    The pixels at the rim stay as they are. Sums are of whole numbers, and no thirteenth of one ends on a half: the
    rounding is exact.
    """
    if min(images.shape[-2:]) < 3:
        return images
    whole = images.float()
    rows = whole[..., :-2, :] + whole[..., 1:-1, :] + whole[..., 2:, :]
    middle = whole[..., 1:-1, 1:-1]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * middle
    smooth = (sums / 13).round()
    result = images.clone()
    result[..., 1:-1, 1:-1] = levels(added(middle, smooth - middle, (1 - factors).float()))
    return result


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the colour circle. A picture without colours stays as it is.

    With the value v (largest channel), the chroma c (largest less smallest) and the hue h in sixths of the circle,
    channel n is v - c * clip(min(k, 4 - k), 0, 1), k = (n + h) mod 6, n = 5, 3, 1 for red, green, blue.
    """
    if images.shape[1] == 1:
        return images
    value, chroma, angle = _cylinder(images.float())
    offsets = _constants((5.0, 3.0, 1.0), images.device).view(1, 3, 1, 1)
    k = (offsets + (angle + turns * 6)).remainder(6)
    return levels((value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)) * _JUST_UNDER)


def _cylinder(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return value, chroma and hue in sixths of the circle, float32 [n, 1, height, width] each."""
    red, green, blue = images.split(1, dim=1)
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = value - least
    divisor = torch.where(chroma == 0, 1.0, chroma)
    from_green, from_blue = (blue - red) / divisor + 2, (red - green) / divisor + 4
    angle = torch.where(value == green, from_green, from_blue)
    return value, chroma, torch.where(value == red, (green - blue) / divisor, angle)


def grey(images: Tensor) -> Tensor:
    """Return the grey levels, whole numbers in float32 [n, 1, height, width]."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, dim=1)
    weights = _constants(LUMA, images.device)
    return added(added(red.float() * weights[0], green, weights[1]), blue, weights[2]).floor()


@cache
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers on a device. They are copied there once."""
    return torch.tensor(values).to(device, non_blocking=True)


def mixed(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """Return images * factors + others * (1 - factors)."""
    return levels(added(images * factors.float(), others, (1 - factors).float()))


def added(values: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    """Return values + others * weight, float32, rounded once, as torch's fused kernel does where it has one.

    Whole grey levels are cut, not rounded, and many sums are whole numbers: a second rounding would be seen. In
    float64 the product of a grey level and a weight is exact.
    """
    return (values.double() + others.double() * weight.double()).float()


def levels(values: Tensor) -> Tensor:
    """Cut to whole grey levels of 0 to 255."""
    return values.clamp(0, 255).to(torch.uint8)


BLENDING = {
    Operation.BRIGHTNESS: brightness,
    Operation.COLOR: color,
    Operation.CONTRAST: contrast,
    Operation.SHARPNESS: sharpness,
}
