"""Photographs in parquet files, as Hugging Face stores ImageNet and other sets.

Each row has an image, a struct {bytes, path} or bytes alone, and a label, a whole number. It needs pyarrow.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from pipelines.base import Data, Request
from pipelines.common.errors import UserError
from pipelines.common.paths import PathText
from pipelines.datasets.photographs import Photographs, PhotographSettings, photographs, sources_of
from pipelines.sources.excluded import Excluded
from pipelines.sources.parquet_parts import parquet_parts, require_complete, require_pyarrow, shards_of
from pipelines.sources.parts import Parts

if TYPE_CHECKING:
    from pipelines.sources.parquet_shards import ParquetShards


class ParquetSettings(PhotographSettings):
    """Photographs in parquet files, as on the Hugging Face Hub: data/train-*.parquet and data/validation-*.parquet."""

    name: Literal["parquet"]
    path: PathText = "data/parquet"
    """Folder that holds the shards, in it or in one folder within."""
    train_shards: str | None = None
    """Shell pattern of the training shards, relative to `path`. If not given: train-*.parquet and the like."""
    val_shards: str | None = None
    """Shell pattern of the validation shards, which choose the best epoch. Without test_shards they are the test data.
    If neither is given: validation-*.parquet, test-*.parquet and the like."""
    test_shards: str | None = None
    """Shell pattern of the test shards, relative to `path`."""
    image_column: str | None = None
    """Column of the images. If not given: `image`, or the only one that can hold images."""
    label_column: str | None = None
    """Column of the labels. If not given: `label`, or the only one of classes or whole numbers."""

    @model_validator(mode="after")
    def _parts_differ(self) -> ParquetSettings:
        given = [pattern for pattern in (self.train_shards, self.val_shards, self.test_shards) if pattern is not None]
        if len(set(given)) < len(given):
            raise ValueError(
                "train_shards, val_shards and test_shards name the same shards twice; "
                "what is trained on, or chosen by, tests nothing: give each its own"
            )
        return self

    def require_loader(self) -> None:
        require_pyarrow("data.name is parquet")
        super().require_loader()

    def count_classes(self) -> int:
        parts, source = _parts(self), _source(self)
        paths = _shards(self, parts, parts.train)
        return int(source.count_classes(Path(self.path), paths, _asked(self), "data.train_shards"))


def check_files(settings: ParquetSettings) -> None:
    """Raise UserError unless the shards exist, one of them can be used, and `data.exclude` can be read."""
    _check_shards(settings)
    Excluded.read(settings.exclude)


def listed(settings: ParquetSettings) -> ParquetShards:
    """Return the training samples."""
    return _samples(settings).train


def build(settings: ParquetSettings, request: Request) -> Data:
    """Return the pipelines. Raises UserError if the shards or `data.exclude` cannot be used."""
    return photographs(_samples(settings), settings, request)


def _source(settings: ParquetSettings) -> Any:
    """Return the module that reads parquet. Raises UserError if pyarrow is not installed."""
    settings.require_loader()
    from pipelines.sources import parquet_shards  # Only here: a config is validated without pyarrow.

    return parquet_shards


def _asked(settings: ParquetSettings) -> Any:
    return _source(settings).Asked(settings.image_column, settings.label_column)


def _parts(settings: ParquetSettings) -> Parts:
    """Return the patterns of the shards: the given ones, else those that the files' names imply."""
    root, source, asked = Path(settings.path), _source(settings), _asked(settings)
    found = parquet_parts(root, holds_labels=lambda path: bool(source.has_labels(root, path, asked)))
    train = settings.train_shards or found.train
    val, test = settings.val_shards, settings.test_shards
    if val is None and test is None:
        return Parts(found.test, found.validation, train)
    return Parts(test, val, train) if test is not None else Parts(val, None, train)


def _setting(settings: ParquetSettings, parts: Parts, pattern: str) -> str:
    """Return the key of a pattern, for messages."""
    if pattern == parts.train:
        return "data.train_shards"
    is_test = pattern == parts.test and (parts.validation is not None or settings.test_shards is not None)
    return "data.test_shards" if is_test else "data.val_shards"


def _shards(settings: ParquetSettings, parts: Parts, pattern: str) -> tuple[str, ...]:
    """Return the paths of the shards of a pattern. Raises UserError if one is missing."""
    root, setting = Path(settings.path), _setting(settings, parts, pattern)
    paths = shards_of(root, pattern, setting)
    if pattern not in (settings.train_shards, settings.val_shards, settings.test_shards):
        require_complete(root, paths, setting)
    return paths


def _check_shards(settings: ParquetSettings) -> Parts:
    """Return the parts. Raises UserError unless there are shards to train and to evaluate on, and no other classes."""
    root, parts = Path(settings.path), _parts(settings)
    paths = {pattern: _shards(settings, parts, pattern) for pattern in parts.there}
    parts.require(root, settings.validation_samples)
    first = paths[parts.train][0]
    names = _source(settings).names_of(root, first, _asked(settings), "data.train_shards")
    if names and len(names) != settings.classes:
        raise UserError(
            f"data.number_of_classes is {settings.classes}, {root / first} names {len(names)}; "
            f"set data.number_of_classes={len(names)}"
        )
    return parts


def _samples(settings: ParquetSettings) -> Photographs[ParquetShards]:
    parts = _check_shards(settings)
    root, source = Path(settings.path), _source(settings)
    excluded = Excluded.read(settings.exclude).names

    def shards(pattern: str) -> ParquetShards:
        found: ParquetShards = source.list_parquet(
            root,
            _shards(settings, parts, pattern),
            settings.classes,
            excluded,
            asked=_asked(settings),
            setting=_setting(settings, parts, pattern),
            every_class=pattern == parts.train,
        )
        return found

    return sources_of(parts, shards)
