"""Photographs in WebDataset's tar shards, for storage that hates small files. To write them: shard_tools.py."""

from __future__ import annotations

from pathlib import Path

from pipelines.base import Data, Request
from pipelines.config import WebdatasetSettings
from pipelines.excluded import Excluded
from pipelines.imagenet import photographs
from pipelines.shards import Shards, list_shards, matching


def check_shards(settings: WebdatasetSettings) -> None:
    """Raise DataError unless there are shards to train and to evaluate on. None is opened."""
    for pattern, setting in ((settings.train_shards, "data.train_shards"), (settings.val_shards, "data.val_shards")):
        matching(Path(settings.path), pattern, setting)


def listed(settings: WebdatasetSettings) -> Shards:
    return _samples(settings)[0]


def build(settings: WebdatasetSettings, request: Request) -> Data:
    return photographs(*_samples(settings), settings, request)


def _samples(settings: WebdatasetSettings) -> tuple[Shards, Shards]:
    """Those to train and those to evaluate on."""
    root, classes = Path(settings.path), settings.number_of_classes
    excluded = Excluded.read(settings.exclude).names
    train = list_shards(root, settings.train_shards, classes, excluded, setting="data.train_shards")
    val = list_shards(root, settings.val_shards, classes, excluded, setting="data.val_shards", every_class=False)
    return train, val
