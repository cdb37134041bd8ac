"""Batches of data sets that fit into memory, made where the network is: on a GPU they are copied there once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.base import Batch
from pipelines.common.errors import UserError
from pipelines.loaders.base import Feed, Loader, Stream
from pipelines.loaders.finishing import Finishing, device_of
from pipelines.loaders.torch_views import made_of
from pipelines.sources.base import Arrays
from pipelines.views import Recipe


@dataclass(frozen=True)
class ResidentLoader(Loader):
    """A loader without threads or processes. Its feeds share one copy of the images of a source."""

    _held: dict[int, tuple[Arrays, Tensor, Tensor]] = field(default_factory=dict, compare=False)

    def feed(self, recipe: Recipe, stream: Stream, batch: int) -> Feed:
        assert isinstance(recipe.source, Arrays), "settings refuse this loader for data sets on the disk"
        return ResidentFeed(self, recipe, stream)

    def held(self, source: Arrays) -> tuple[Tensor, Tensor]:
        """Return images, uint8 [samples, height, width, channels], and labels, int64 [samples], on the device."""
        if id(source) not in self._held:
            try:
                self._held[id(source)] = source, self.placed(source.images), self.placed(source.labels)
            except torch.OutOfMemoryError:
                gigabytes = source.images.nbytes / 2**30
                raise UserError(
                    f"data.loader is resident: the GPU has no room for {gigabytes:.1f} GiB of images; use another"
                ) from None
        return self._held[id(source)][1:]

    def placed(self, array: NDArray[Any]) -> Tensor:
        """Return an array on the device; on the CPU in the same memory."""
        return torch.from_numpy(array).to(device_of(self), non_blocking=True)


class ResidentFeed(Feed):
    """Batches that are gathered, cropped and normalised on the device."""

    def __init__(self, loader: ResidentLoader, recipe: Recipe, stream: Stream) -> None:
        assert isinstance(recipe.source, Arrays)
        self._loader, self._recipe, self._stream = loader, recipe, stream
        self._images, self._labels = loader.held(recipe.source)
        self._finished = Finishing(loader, recipe)

    def next(self) -> Batch:
        indices, drawn = next(self._stream)
        uniforms, others = self._recipe.split(drawn)
        places, view = self._loader.placed(indices), self._recipe.view
        views = made_of(view, self._images, places, view.numbers(uniforms))
        return self._finished.of_grey_levels(views, others), self._labels[places]

    def close(self) -> None:
        """Do nothing: neither thread nor process was started."""


THE_LOADER = ResidentLoader
