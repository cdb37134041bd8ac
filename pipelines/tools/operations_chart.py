"""A chart of the operations on pixels: a photograph after each of them, at some magnitudes of TrivialAugmentWide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.common.errors import UserError
from pipelines.pixels.applying import applied
from pipelines.pixels.tables import SIGNED, WIDE, Operation
from pipelines.preview import grid, write_png

SIDE = 128
"""Height and width of a picture in the chart, in pixels."""
COLUMNS = 5
PLAIN = (Operation.AUTO_CONTRAST, Operation.EQUALIZE)
"""Operations without a magnitude."""


def write_chart(photograph: Image.Image, path: Path) -> None:
    """Write the chart as a PNG file, a row an operation. Raises UserError if it cannot be written."""
    image = torch.from_numpy(np.array(photograph.resize((SIDE, SIDE)))).permute(2, 0, 1)
    shown = [cell for operation in Operation if operation for cell in row(image, operation)]
    pictures, captions = (list(part) for part in zip(*shown, strict=True))
    chart = grid(torch.stack(pictures), torch.arange(len(captions)), tuple(captions), None, columns=COLUMNS)
    try:
        write_png(chart, path)
    except (OSError, ValueError) as error:  # ValueError: a name that ends in no known format.
        raise UserError(
            f"--operations is {path}, which cannot be written ({error}); give a file such as a.png"
        ) from None


def row(image: Tensor, operation: Operation) -> list[tuple[Tensor, str]]:
    """Return COLUMNS pictures with their captions."""
    name = operation.name.lower()
    if operation in PLAIN:
        blank = (torch.full_like(image, 255), "")
        return [(image, "as it is"), (_made(image, operation, 0), name), *[blank] * (COLUMNS - 2)]
    return [(_made(image, operation, m), f"{name} {m:.2f}") for m in _magnitudes(operation)]


def _magnitudes(operation: Operation) -> list[float]:
    """Return COLUMNS magnitudes from one end to the other."""
    if operation == Operation.HUE:
        return [-0.5, -0.25, 0.0, 0.25, 0.5]
    table = WIDE.magnitudes(SIDE, SIDE)[operation]
    if SIGNED[operation]:
        table = np.concatenate((-table[:0:-1], table))
    found: list[float] = table[np.linspace(0, len(table) - 1, COLUMNS).round().astype(int)].tolist()
    return found


def _made(image: Tensor, operation: int, magnitude: float) -> Tensor:
    return applied(image[None], iter([(np.array([operation]), np.array([magnitude]))]))[0]
