"""Views as torchvision's transforms (v2): one image in, one tensor out."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines import augment
from pipelines.common.torchvision_ops import import_torchvision
from pipelines.images.reference import rgb
from pipelines.order import Indices, Uniforms
from pipelines.sources.base import Arrays
from pipelines.views import AsItIs, CentralCrop, RandomCrop, RandomResizedCrop, View

import_torchvision()
from torchvision.transforms.v2 import functional as untyped  # noqa: E402 - it may need its operators declared first

functional: Any = untyped


def pixels(image: Image.Image) -> Tensor:
    """Return the RGB pixels, uint8 [3, height, width]."""
    tensor: Tensor = functional.pil_to_tensor(rgb(image))
    return tensor


@singledispatch
def made(view: View, image: Any, *numbers: Any) -> Tensor:
    """Return the view of an image in grey levels, uint8 or float [channels, height, width].

    `image`: a PIL image, or an array or tensor, uint8 [height, width, channels]. `numbers`: the image's rows of
    `view.numbers`.
    """
    raise NotImplementedError(type(view).__name__)


@made.register
def _(view: AsItIs, image: Any) -> Tensor:
    tensor = tensor_of(image)
    return tensor if view.size is None else resized(tensor.float(), *view.size)


@made.register
def _(view: RandomCrop, image: Any, top: Any, left: Any, mirror: Any) -> Tensor:
    return _mirrored(cropped(tensor_of(image), int(top), int(left), *view.size), mirror)


@made.register
def _(view: CentralCrop, image: Any) -> Tensor:
    tensor = tensor_of(image)
    _, height, width = tensor.shape
    height, width = augment.shorter_side_resized(height, width, view.resize)
    return cropped(resized(tensor, height, width), *augment.central_window(height, width, view.size))


@made.register
def _(view: RandomResizedCrop, image: Any, factors: Any, place: Any, mirror: Any) -> Tensor:
    height, width = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]
    top, left, h, w = augment.random_window(height, width, factors, place)
    if isinstance(image, Image.Image):  # Crop first: the rest then handles fewer pixels.
        window = tensor_of(image.crop((left, top, left + w, top + h)))
    else:
        window = cropped(tensor_of(image), top, left, h, w)
    return _mirrored(resized(window, view.size, view.size), mirror)


@singledispatch
def made_together(view: View, images: Tensor, indices: Tensor, *numbers: Tensor) -> Tensor:
    """Return the views of some of the images at once, [batch, channels, height, width], each as `made` returns it.

    `images`: uint8 [samples, height, width, channels]. `indices`: int64 [batch]. `numbers`: `view.numbers`, each
    [batch, ...]. All are on one device. NotImplementedError where there is no way but one by one.
    """
    raise NotImplementedError(type(view).__name__)


@made_together.register
def _(view: AsItIs, images: Tensor, indices: Tensor) -> Tensor:
    whole = channels_first(images[indices])
    return whole if view.size is None else resized(whole.float(), *view.size)


@made_together.register
def _(view: RandomCrop, images: Tensor, indices: Tensor, top: Tensor, left: Tensor, mirror: Tensor) -> Tensor:
    height, width = (torch.arange(size, device=images.device) for size in view.size)
    rows = top[:, None] + height
    columns = left[:, None] + torch.where(mirror[:, None] > 0, width.flip(0), width)
    return channels_first(images[indices[:, None, None], rows[:, :, None], columns[:, None, :]])


def of_arrays(source: Arrays, view: View, indices: Indices, uniforms: Uniforms) -> Tensor:
    """Return the views of some images in memory, in memory of their own."""
    images, places = torch.from_numpy(source.images), torch.from_numpy(indices)
    return made_of(view, images, places, view.numbers(uniforms)).contiguous()


def made_of(view: View, images: Tensor, places: Tensor, numbers: tuple[NDArray[Any], ...]) -> Tensor:
    """Return the views of some images at once if there is a way, else one by one; [batch, channels, height, width].

    `images`: uint8 [samples, height, width, channels] and `places`: int64 [batch], on one device. `numbers`:
    `view.numbers`, in the host's memory.
    """
    placed = (torch.from_numpy(each).to(images.device, non_blocking=True) for each in numbers)  # A GPU's host goes on.
    try:
        return made_together(view, images, places, *placed)
    except NotImplementedError:
        return torch.stack([made(view, image, *row) for image, *row in zip(images[places], *numbers, strict=True)])


def channels_first(images: Tensor) -> Tensor:
    """Return [batch, height, width, channels] as [batch, channels, height, width], in the same memory."""
    return images.permute(0, 3, 1, 2)


def resized(tensor: Tensor, height: int, width: int) -> Tensor:
    """Resize linearly with antialiasing. Sizes are in pixels."""
    small: Tensor = functional.resize(tensor, [height, width], antialias=True)
    return small


def cropped(tensor: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Return a window, in pixels. Where it reaches beyond the image it is filled with zeros."""
    window: Tensor = functional.crop(tensor, top, left, height, width)
    return window


def _mirrored(tensor: Tensor, mirror: Any) -> Tensor:
    image: Tensor = functional.horizontal_flip(tensor) if mirror else tensor
    return image


def tensor_of(image: Any) -> Tensor:
    """Return an image as uint8 [channels, height, width]."""
    if isinstance(image, Image.Image):
        return pixels(image)
    if isinstance(image, Tensor):
        return image.permute(2, 0, 1).contiguous()
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
