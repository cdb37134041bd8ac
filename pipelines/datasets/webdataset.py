"""Photographs in WebDataset's tar shards, for storage that is slow with small files.

`python -m pipelines shards` writes and indexes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipelines.base import Data, Request
from pipelines.common.errors import UserError
from pipelines.common.paths import PathText
from pipelines.datasets.photographs import PhotographSettings, photographs
from pipelines.datasets.sharded import PartShards, excluded, patterns, require_parts
from pipelines.sources.class_list import CLASSES, read_names
from pipelines.sources.excluded import Excluded
from pipelines.sources.parts import Split
from pipelines.sources.shards import Shards, count_classes, list_shards, matching, shard_parts


class WebdatasetSettings(PhotographSettings):
    """Photographs in WebDataset's tar shards (KEY.jpg and KEY.cls a sample), for storage slow with small files."""

    name: Literal["webdataset"]
    path: PathText = "data/shards"
    """Folder that holds the shards."""
    train_shards: str = "train/*.tar"
    """Shell pattern of the training shards, relative to `path`."""
    val_shards: str | None = None
    """Shell pattern of the validation shards, which choose the best epoch. Without test_shards they are the test data.
    If neither is given: val/*.tar or test/*.tar."""
    test_shards: str | None = None
    """Shell pattern of the test shards, relative to `path`."""

    def count_classes(self) -> int:
        return count_classes(Path(self.path), self.train_shards)


def check_files(settings: WebdatasetSettings) -> None:
    """Raise UserError unless the shards exist, without opening one, and `data.exclude` can be read."""
    _check_shards(settings)
    Excluded.read(settings.exclude)


def _check_shards(settings: WebdatasetSettings) -> Split[PartShards]:
    """Return the parts. Raises UserError unless there are shards to train and to evaluate on, and no other classes."""
    root, parts = Path(settings.path), _parts(settings)
    require_parts(settings, parts, lambda part: matching(root, part.pattern, part.setting))
    names = read_names(root)
    if names and len(names) != settings.classes:
        raise UserError(
            f"data.number_of_classes is {settings.classes}, {root / CLASSES} names {len(names)}; "
            f"correct the list, or set data.number_of_classes={len(names)}"
        )
    return parts


def listed(settings: WebdatasetSettings) -> Shards:
    """Return the training samples."""
    return _samples(settings).train


def build(settings: WebdatasetSettings, request: Request) -> Data:
    """Return the pipelines. Raises UserError if the shards or `data.exclude` cannot be used."""
    return photographs(_samples(settings), settings, request)


def _parts(settings: WebdatasetSettings) -> Split[PartShards]:
    root = Path(settings.path)
    return patterns(settings, lambda: settings.train_shards, lambda _: shard_parts(root))


def _samples(settings: WebdatasetSettings) -> Split[Shards]:
    root, parts = Path(settings.path), _check_shards(settings)
    paths = parts.map(lambda part: matching(root, part.pattern, part.setting))
    unwanted = excluded(settings, settings.exclude, paths)

    def shards(part: PartShards) -> Shards:
        every_class = part is parts.train
        return list_shards(
            root, part.pattern, settings.classes, unwanted, setting=part.setting, every_class=every_class
        )

    return parts.map(shards)
