"""Photographs in WebDataset's tar shards, for storage that hates small files. To write them: shard_tools.py."""

from __future__ import annotations

from pathlib import Path

from pipelines.base import Data, Request
from pipelines.common.errors import UserError
from pipelines.datasets.imagenet import Photographs, photographs, sources_of
from pipelines.datasets.settings import WebdatasetSettings
from pipelines.sources.class_list import CLASSES, read_names
from pipelines.sources.excluded import Excluded
from pipelines.sources.parts import Parts
from pipelines.sources.shards import Shards, list_shards, matching, shard_parts


def check_shards(settings: WebdatasetSettings) -> None:
    """Raise UserError unless there are shards to train and to evaluate on, and no other classes. None is opened."""
    root = Path(settings.path)
    parts = _parts(settings)
    for pattern in parts.there:
        matching(root, pattern, _setting(settings, pattern))
    parts.require(root, settings.validation_samples)
    names = read_names(root)
    if names and len(names) != settings.classes:
        raise UserError(
            f"data.number_of_classes is {settings.classes}, {root / CLASSES} names {len(names)}; "
            f"correct the list, or set data.number_of_classes={len(names)}"
        )


def listed(settings: WebdatasetSettings) -> Shards:
    return _samples(settings).train


def build(settings: WebdatasetSettings, request: Request) -> Data:
    return photographs(_samples(settings), settings, request)


def _parts(settings: WebdatasetSettings) -> Parts:
    """The patterns of the shards: those given, or else by the names of folders. Raises UserError."""
    root = Path(settings.path)
    val, test = settings.val_shards, settings.test_shards
    if val is None and test is None:
        return shard_parts(root, settings.train_shards)
    return Parts(test, val, settings.train_shards) if test is not None else Parts(val, None, settings.train_shards)


def _setting(settings: WebdatasetSettings, pattern: str) -> str:
    """What messages call a pattern."""
    given = {settings.train_shards: "data.train_shards", settings.val_shards: "data.val_shards"}
    return given.get(pattern, "data.test_shards" if settings.test_shards else "data.val_shards")


def _samples(settings: WebdatasetSettings) -> Photographs[Shards]:
    check_shards(settings)
    root, parts = Path(settings.path), _parts(settings)
    excluded = Excluded.read(settings.exclude).names

    def shards(pattern: str) -> Shards:
        setting = _setting(settings, pattern)
        every_class = pattern == parts.train
        return list_shards(root, pattern, settings.classes, excluded, setting=setting, every_class=every_class)

    return sources_of(parts, shards)
