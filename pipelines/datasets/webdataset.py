"""Photographs in WebDataset's tar shards, for storage that is slow with small files.

`python -m pipelines shards` writes and indexes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from pipelines.base import Data, Request
from pipelines.common.errors import UserError
from pipelines.common.paths import PathText
from pipelines.datasets.photographs import Photographs, PhotographSettings, photographs, sources_of
from pipelines.sources.class_list import CLASSES, read_names
from pipelines.sources.excluded import Excluded
from pipelines.sources.parts import Parts
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

    @model_validator(mode="after")
    def _parts_differ(self) -> WebdatasetSettings:
        given = [pattern for pattern in (self.train_shards, self.val_shards, self.test_shards) if pattern is not None]
        if len(set(given)) < len(given):
            raise ValueError(
                "train_shards, val_shards and test_shards name the same shards twice; "
                "what is trained on, or chosen by, tests nothing: give each its own"
            )
        return self

    def count_classes(self) -> int:
        return count_classes(Path(self.path), self.train_shards)


def check_files(settings: WebdatasetSettings) -> None:
    """Raise UserError unless the shards exist, without opening one, and `data.exclude` can be read."""
    _check_shards(settings)
    Excluded.read(settings.exclude)


def _check_shards(settings: WebdatasetSettings) -> None:
    """Raise UserError unless there are shards to train and to evaluate on, and no other classes."""
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
    """Return the training samples."""
    return _samples(settings).train


def build(settings: WebdatasetSettings, request: Request) -> Data:
    """Return the pipelines. Raises UserError if the shards or `data.exclude` cannot be used."""
    return photographs(_samples(settings), settings, request)


def _parts(settings: WebdatasetSettings) -> Parts:
    """Return the patterns of the shards: the given ones, else those that the folders' names imply."""
    root = Path(settings.path)
    val, test = settings.val_shards, settings.test_shards
    if val is None and test is None:
        return shard_parts(root, settings.train_shards)
    return Parts(test, val, settings.train_shards) if test is not None else Parts(val, None, settings.train_shards)


def _setting(settings: WebdatasetSettings, pattern: str) -> str:
    """Return the key of a pattern, for messages."""
    given = {settings.train_shards: "data.train_shards", settings.val_shards: "data.val_shards"}
    return given.get(pattern, "data.test_shards" if settings.test_shards else "data.val_shards")


def _samples(settings: WebdatasetSettings) -> Photographs[Shards]:
    _check_shards(settings)
    root, parts = Path(settings.path), _parts(settings)
    excluded = Excluded.read(settings.exclude).names

    def shards(pattern: str) -> Shards:
        setting = _setting(settings, pattern)
        every_class = pattern == parts.train
        return list_shards(root, pattern, settings.classes, excluded, setting=setting, every_class=every_class)

    return sources_of(parts, shards)
