"""Images too large to wait in a batch: their view is made as soon as they are read, one image at a time.

A batch holds all its images at once, and DALI is given some batches ahead. Of images as large as `data.most_pixels`
allows they would fill the memory: 16 files of 36 bytes can be 5 GB. Of what is handed over here, DALI's graph changes
nothing: it only normalises it.
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
    """uint8 [3, height, width], of which the graph of `view` makes what it would of `image` with these numbers.

    The graph must be given zeros in place of the numbers: then a square is resized as a whole, which changes nothing
    if it has its size already, and is not mirrored.
    """
    return made(view, image, *numbers)


@ready.register
def _(view: CentralCrop, image: Image.Image) -> Tensor:
    """Resized, and only so much of it that the graph finds the same crop in its middle."""
    tensor = tensor_of(image)
    _, height, width = tensor.shape
    height, width = augment.shorter_side_resized(height, width, view.resize)
    top, left, *_ = augment.central_window(height, width, view.size)
    inner, *_ = augment.central_window(view.resize, view.resize, view.size)
    return cropped(resized(tensor, height, width), top - inner, left - inner, view.resize, view.resize)


def given(view: View, image: Image.Image, *numbers: Any) -> Bytes:
    """The same as DALI is given it."""
    return as_pnm(Image.fromarray(ready(view, image, *numbers).permute(1, 2, 0).contiguous().numpy()))
