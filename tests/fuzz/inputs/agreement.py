"""Programs of the fuzzer's own: what a loader makes of the images of a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

import pipelines
from dynsparse.config import loading
from dynsparse.errors import UserError
from pipelines.base import Data, EvaluationPipeline, Request
from pipelines.common import streams
from pipelines.loaders.registry import loader
from pipelines.order import Share
from pipelines.sources.base import digest

_BATCH = 4


class Bytes:
    """An `Encoded` source of images that are in memory."""

    def __init__(self, images: Mapping[str, bytes]) -> None:
        self._names, self._images = list(images), list(images.values())
        self.labels = np.zeros(len(images), dtype=np.int64)
        self.listing = digest(*self._images)
        self.class_names = ("any",)

    def name(self, index: int) -> str:
        return self._names[index]

    def encoded(self, index: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        return np.frombuffer(self._images[index], dtype=np.uint8)

    def reopen(self) -> None:
        pass


def look(name: str, out: Path) -> int:
    """Read the data of F.yaml as evaluation sees them, bad ones left out; the pixels go to a file.

    What is left out is said, as in training.
    """
    import logging

    logging.getLogger().handlers.clear()
    streams.log_in_lines(logging.INFO)
    try:
        settings = loading.load(Path("F.yaml"), [f"data.loader={name}", "data.on_bad_file=skip"]).data
        pipelines.check(settings)
        data = pipelines.build(settings, _request())
        with closing(data):
            np.savez(out, **{part: _grey_levels(data, pipeline) for part, pipeline in _parts(data).items()})
    except UserError as error:
        import sys

        print("".join(f"error: {line}\n" for line in str(error).splitlines()), end="", file=sys.stderr)
        return 2
    return 0


def _request() -> Request:
    return Request(3, _BATCH, Share(), _BATCH, device_id=None, evaluate_train=True)


def _parts(data: Data) -> dict[str, EvaluationPipeline]:
    assert data.train_evaluation is not None
    found = {"train": data.train_evaluation, "val": data.test}
    return {part: pipeline for part, pipeline in found.items() if pipeline is not None}


def _grey_levels(data: Data, pipeline: EvaluationPipeline) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """float32 [samples, 3, height, width]."""
    batches = [images.numpy() for images, _ in pipeline.batches()]
    assert data.normalisation is not None
    mean, std = (np.array(values, dtype=np.float32).reshape(3, 1, 1) for values in vars(data.normalisation).values())
    return np.concatenate(batches) * std + mean if batches else np.zeros((0, 3, 1, 1), dtype=np.float32)


def verdicts(name: str, images: Mapping[str, bytes]) -> int:
    """Print what the loader finds wrong with each image."""
    from pipelines.datasets.imagenet import ImagenetSettings

    settings = ImagenetSettings.model_validate({"name": "imagenet", "loader": name, "threads": 1})
    made_by, source = loader(settings, _request()), Bytes(images)
    print(json.dumps({image: made_by.fault(source, index) for index, image in enumerate(images)}))
    return 0
