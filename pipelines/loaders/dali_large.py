"""Images too large to wait in a batch: their view is made as soon as they are read, one image at a time.

A batch holds all its images at once, and DALI gets some batches ahead. Images as large as `data.most_pixels` allows
would fill the memory: 16 files of 36 bytes can be 5 GB. DALI's graph only normalises the images that are made here.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from PIL import Image
from torch import Tensor

from pipelines import augment
from pipelines.images.encoded import Bytes
from pipelines.images.reference import as_pnm
from pipelines.loaders.torch_views import cropped, made, resized, tensor_of
from pipelines.views import CentralCrop, View


@singledispatch
def ready(view: View, image: Image.Image, *numbers: Any) -> Tensor:
    """Return uint8 [3, height, width]. The graph of `view` makes of it what it would make of `image` with `numbers`.

    The graph must be given zeros in place of the numbers. It then takes all of the square image and does not mirror it,
    and resizing changes nothing, for it has its final size.
    """
    return made(view, image, *numbers)


@ready.register
def _(view: CentralCrop, image: Image.Image) -> Tensor:
    """Return the resized image's central part, in which the graph finds the same crop."""
    tensor = tensor_of(image)
    _, height, width = tensor.shape
    height, width = augment.shorter_side_resized(height, width, view.resize)
    top, left, *_ = augment.central_window(height, width, view.size)
    inner, *_ = augment.central_window(view.resize, view.resize, view.size)
    return cropped(resized(tensor, height, width), top - inner, left - inner, view.resize, view.resize)


def given(view: View, image: Image.Image, *numbers: Any) -> Bytes:
    """Return the image that `ready` makes, encoded for DALI."""
    return as_pnm(Image.fromarray(ready(view, image, *numbers).permute(1, 2, 0).contiguous().numpy()))
