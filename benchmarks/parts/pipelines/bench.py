"""Data and pipelines that all parts of `benchmarks.pipelines` share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import pipelines
from pipelines.base import Data, Request
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.datasets.webdataset import WebdatasetSettings
from pipelines.order import Share
from pipelines.tools import sample_images

CLASSES = len(sample_images.CLASSES)


@dataclass(frozen=True)
class Amount:
    """The amount that is measured."""

    each: int = 100
    """Images a class, in train as in val."""
    image_size: int = 224
    resize: int = 256
    batch: int = 64
    rounds: int = 7
    batches: int = 8
    """Batches timed in each round, after `warm_up`."""
    warm_up: int = 4
    traced: int = 512
    """Images through each partial graph, a round."""
    network_epochs: int = 4
    memory_train: int = 40
    """Images a class."""
    memory_val: int = 10
    memory_epochs: int = 50
    memory_size: int = 64
    memory_batch: int = 32
    feed_cpu: tuple[int, int] = (64, 32)
    """Image size and batch where there is no GPU."""
    feed_gpu: tuple[int, int] = (224, 256)
    feed_steps: int = 4


TINY = Amount(
    each=2, image_size=32, resize=36, batch=4, rounds=1, batches=2, warm_up=1, traced=8, network_epochs=1,
    memory_train=1, memory_val=1, memory_epochs=3, memory_size=16, memory_batch=4,
    feed_cpu=(32, 2), feed_gpu=(32, 2), feed_steps=1,
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """A folder for the data, and how much is measured with how many threads."""

    folder: Path
    amount: Amount
    threads: int
    images: Path | None = None
    """A folder of images of one's own."""

    @property
    def workers(self) -> int:
        """Processes to write images with: to start some takes longer than a few images do."""
        return self.threads if self.amount.each > 10 else 1

    def photographs(self, name: str, plans: Mapping[str, tuple[int, tuple[int, int]]]) -> Path:
        """Write images. `plans` says by part how many a class, and from which to which side."""
        folder = self.folder / name
        if not folder.exists():
            files = [file for part, (n, sides) in plans.items() for file in sample_images.plan(part, n, sides, 0, 0)]
            sample_images.write(files, folder, self.workers)
        return folder

    def large(self) -> Path:
        """Write training images of about as many pixels as 500x375, and validation images of all sizes."""
        each = self.amount.each
        return self.photographs("photographs", {"train": (each, (375, 500)), "val": (each, (160, 500))})

    def data(self, path: Path, loader: str, batch: int, size: tuple[int, int] | None = None, **request: Any) -> Data:
        """Build pipelines of a folder of images, or of shards where the folder holds them."""
        kind = WebdatasetSettings if (path / "classes.txt").exists() else ImagenetSettings
        image_size, resize = size or (self.amount.image_size, self.amount.resize)
        settings = kind.model_validate(
            {
                "name": kind.__name__.removesuffix("Settings").lower(),
                "path": str(path),
                "loader": loader,
                "threads": self.threads,
                "image_size": image_size,
                "evaluation_resize": resize,
            }
        ).resolved()
        request = {"seed": 0, "global_batch": batch, "evaluation_batch": batch, "device_id": None, **request}
        return pipelines.build(settings, Request(share=Share(), **request))


def endless(data: Data) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield training batches. Close it: left to the garbage collector, the torch loader's processes end late."""
    try:
        while True:
            for step in data.train.epoch():
                yield from step
    finally:
        close(data.train)


def close(*served: Any) -> None:
    """Let a pipeline's threads and processes go."""
    for pipeline in served:
        pipeline.close()
