"""The last steps to a batch, on its device: operations on pixels, normalisation, erasing. One code for all loaders."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.loaders.base import Loader
from pipelines.order import Uniforms
from pipelines.views import Recipe


def device_of(loader: Loader) -> torch.device:
    """Return the device that batches are delivered on."""
    return torch.device("cpu") if loader.device_id is None else torch.device("cuda", loader.device_id)


class Finishing:
    """Makes batches of views. Random numbers are float64 [batch, all of recipe.pixels.streams]."""

    def __init__(self, loader: Loader, recipe: Recipe) -> None:
        self._loader, self._pixels = loader, recipe.pixels
        self.device = device_of(loader)
        normalisation = recipe.normalisation
        self._mean, self._std = (
            torch.tensor(values).to(self.device, non_blocking=True).view(1, -1, 1, 1)
            for values in (normalisation.mean, normalisation.std)
        )

    def of_grey_levels(self, images: Tensor, uniforms: Uniforms) -> Tensor:
        """Return the batch of views in grey levels, uint8 or float [batch, channels, height, width]."""
        if self._pixels.policies:
            images = self._pixels.changed(images, uniforms)
        layout = torch.channels_last if self._loader.channels_last else torch.contiguous_format
        images = images.contiguous(memory_format=layout)
        normalised = images.float().sub_(self._mean).div_(self._std)
        return self.of_normalised(normalised.half() if self._loader.half else normalised, uniforms)

    def of_normalised(self, images: Tensor, uniforms: Uniforms) -> Tensor:
        """Return the batch of normalised views, float32 or float16, which are erased in place."""
        self._pixels.erase(images, uniforms)
        return images
