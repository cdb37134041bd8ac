"""Operations that move pixels: shear, translate, rotate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipelines.pixels.tables import Operation

Row = tuple[float, float, float, float, float, float]
"""A matrix [2, 3] row by row. It takes a place in the new picture to its place in the old one.

Places are x and y in pixels from the centre.
"""


def matrix(operation: int, magnitude: float, height: int, width: int) -> Row:
    """Return the matrix of an operation on a picture of this size in pixels.

    As in torchvision, a shear keeps the first row or column in place, a translation is cut to whole pixels, and
    a rotation turns counter-clockwise. Sines come from Python: those of arrays may depend on the place in the array.
    """
    m = magnitude
    if operation == Operation.SHEAR_X:
        return 1, m, m * height / 2, 0, 1, 0
    if operation == Operation.SHEAR_Y:
        return 1, 0, 0, m, 1, m * width / 2
    if operation == Operation.TRANSLATE_X:
        return 1, 0, -int(m), 0, 1, 0
    if operation == Operation.TRANSLATE_Y:
        return 1, 0, 0, 0, 1, -int(m)
    assert operation == Operation.ROTATE, operation
    cosine, sine = math.cos(math.radians(m)), math.sin(math.radians(m))
    return cosine, -sine, 0, sine, cosine, 0


def warped(images: Tensor, matrices: Tensor) -> Tensor:
    """Move the pixels of uint8 [n, channels, height, width] by matrices float64 [n, 6].

    Linear between pixels, black outside. Products and sums are kernels of their own: a fused one rounds otherwise, and
    where it is used may depend on the place in the batch.
    """
    height, width = images.shape[-2:]
    x, y = (torch.arange(n, dtype=torch.float64, device=images.device) - (n - 1) / 2 for n in (width, height))
    a, b, c, d, e, f = matrices[:, :, None, None].unbind(1)
    y = y[:, None]
    across = ((a * x + c) * (2 / width)) + (b * y * (2 / width))  # Only this sum is as large as the image.
    down = ((d * x + f) * (2 / height)) + (e * y * (2 / height))
    grid = torch.stack((across.float(), down.float()), dim=-1)
    moved = torch.nn.functional.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
    return moved.round_().to(torch.uint8)
