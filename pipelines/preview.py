"""A picture of training samples, for people to look at before they train."""

from __future__ import annotations

from math import ceil, sqrt
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pipelines.base import Data, dominant
from pipelines.common.text import one_line
from pipelines.views import Normalisation

SHORTEST = 96
"""Least size of a shown image's shorter side, in pixels. Smaller images are enlarged."""
CAPTION = 14


def picture(data: Data, images: Tensor, labels: Tensor, most: int) -> Tensor:
    """Return up to `most` images of a batch as the network gets them, in a grid: uint8 [3, height, width].

    Mixed ones have the name of their dominant class.
    """
    return grid(images[:most], dominant(labels[:most]), data.class_names, data.normalisation)


def grid(
    images: Tensor,
    labels: Tensor,
    class_names: tuple[str, ...],
    normalisation: Normalisation | None,
    columns: int | None = None,
) -> Tensor:
    """Return the images, [n, 1 or 3, height, width], in grey levels over their labels: uint8 [3, height, width].

    They are in a square unless `columns` says otherwise.
    """
    shown = grey_levels(images, normalisation)
    height, width = shown.shape[1:3]
    scale = ceil(SHORTEST / min(height, width))
    columns = columns or ceil(sqrt(len(shown)))
    rows = ceil(len(shown) / columns)
    cell = (width * scale + 4, height * scale + CAPTION + 4)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (pixels, label) in enumerate(zip(shown, labels.tolist(), strict=True)):
        left, top = place % columns * cell[0] + 2, place // columns * cell[1] + 2
        image = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(image, (left, top))
        draw.text((left, top + height * scale + 1), _caption(label, class_names, width * scale, draw), fill="black")
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)


def write_png(picture: Tensor, path: Path) -> None:
    """Write uint8 [3, height, width] as a PNG file. Raises OSError."""
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)


def grey_levels(images: Tensor, normalisation: Normalisation | None) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Undo the normalisation: return uint8 [n, height, width, 3]."""
    levels = images.detach().float().cpu()
    if normalisation is not None:
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (normalisation.mean, normalisation.std))
        levels = levels * std + mean
    levels = levels.round().clamp(0, 255).to(torch.uint8)
    if levels.shape[1] != 3:  # Grey, or channels that no screen can show: take the first.
        levels = levels[:, :1].expand(-1, 3, -1, -1)
    return np.ascontiguousarray(levels.permute(0, 2, 3, 1).numpy())


def _caption(label: int, class_names: tuple[str, ...], width: int, draw: ImageDraw.ImageDraw) -> str:
    """Return the class's name, else its number, shortened to fit into `width` pixels."""
    text = one_line(class_names[label]) if label < len(class_names) else str(label)
    if draw.textlength(text) > width:
        while text and draw.textlength(text + "..") > width:
            text = text[:-1]
        text += ".."
    return text
