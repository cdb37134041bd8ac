"""Views as torchvision's transforms (v2): one image in, one tensor out."""

from __future__ import annotations

import io
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pipelines import augment
from pipelines.sources import Bytes
from pipelines.torchvision_ops import import_torchvision
from pipelines.views import AsItIs, CentralCrop, RandomCrop, RandomResizedCrop, View

import_torchvision()
from torchvision.transforms.v2 import functional as untyped  # noqa: E402 - it may need its operators declared first

functional: Any = untyped

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Those that DALI decodes among those that PIL does."""

Image.MAX_IMAGE_PIXELS = None  # Training data are trusted; large photographs are no attack.


def decoded(encoded: Bytes) -> Image.Image:
    """The upright image. Its pixels are decoded when they are first needed. Raises what PIL raises."""
    image = Image.open(io.BytesIO(encoded.data), formats=FORMATS)
    ImageOps.exif_transpose(image, in_place=True)  # Else it would copy those that stand upright already.
    return image


def pixels(image: Image.Image) -> Tensor:
    """uint8 [3, height, width]."""
    tensor: Tensor = functional.pil_to_tensor(image if image.mode == "RGB" else image.convert("RGB"))
    return tensor


@singledispatch
def made(view: View, image: Any, *numbers: Any) -> Tensor:
    """uint8 or float [channels, height, width], in grey levels.

    `image`: a PIL image, or uint8 [height, width, channels]. `numbers`: those
    of `view.numbers` for this image.
    """
    raise NotImplementedError(type(view).__name__)


@made.register
def _(view: AsItIs, image: Any) -> Tensor:
    tensor = _tensor(image)
    return tensor if view.size is None else _resized(tensor.float(), *view.size)


@made.register
def _(view: RandomCrop, image: Any, top: Any, left: Any, mirror: Any) -> Tensor:
    return _mirrored(_cropped(_tensor(image), int(top), int(left), *view.size), mirror)


@made.register
def _(view: CentralCrop, image: Any) -> Tensor:
    tensor = _tensor(image)
    _, height, width = tensor.shape
    height, width = augment.shorter_side_resized(height, width, view.resize)
    return _cropped(_resized(tensor, height, width), *augment.central_window(height, width, view.size))


@made.register
def _(view: RandomResizedCrop, image: Any, factors: Any, place: Any, mirror: Any) -> Tensor:
    height, width = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]
    top, left, h, w = augment.random_window(height, width, factors, place)
    if isinstance(image, Image.Image):  # Before anything else is done to all of the pixels.
        cropped = _tensor(image.crop((left, top, left + w, top + h)))
    else:
        cropped = _cropped(_tensor(image), top, left, h, w)
    return _mirrored(_resized(cropped, view.size, view.size), mirror)


def _resized(tensor: Tensor, height: int, width: int) -> Tensor:
    """Linear with antialiasing."""
    small: Tensor = functional.resize(tensor, [height, width], antialias=True)
    return small


def _cropped(tensor: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    window: Tensor = functional.crop(tensor, top, left, height, width)
    return window


def _mirrored(tensor: Tensor, mirror: Any) -> Tensor:
    image: Tensor = functional.horizontal_flip(tensor) if mirror else tensor
    return image


def _tensor(image: Any) -> Tensor:
    """uint8 [channels, height, width]."""
    if isinstance(image, Image.Image):
        return pixels(image)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
