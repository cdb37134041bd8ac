"""Photographs in parquet files, as Hugging Face stores ImageNet and other sets.

Each row has an image, a struct {bytes, path} or bytes alone, and a label, a whole number. It needs pyarrow.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.base import Data, Request
from pipelines.common.errors import UserError
from pipelines.common.paths import PathText
from pipelines.datasets.photographs import PhotographSettings, photographs
from pipelines.datasets.sharded import PartShards, excluded, patterns, require_parts
from pipelines.sources.excluded import Excluded
from pipelines.sources.parquet_parts import (
    evaluated_parts,
    require_complete,
    require_pyarrow,
    shards_of,
    train_pattern,
)
from pipelines.sources.parts import Parts, Split

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

    def require_loader(self) -> None:
        require_pyarrow("data.name is parquet")
        super().require_loader()

    def count_classes(self) -> int:
        source, train = _source(self), _parts(self).train
        return int(source.count_classes(Path(self.path), _shards(self, train), _asked(self), train.setting))


def check_files(settings: ParquetSettings) -> None:
    """Raise UserError unless the shards exist, one of each part can be used, and `data.exclude` can be read."""
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


def _trained(settings: ParquetSettings, train: PartShards) -> tuple[str, Any]:
    """Return the first training shard and its columns."""
    first = _shards(settings, train)[0]
    return first, _source(settings).columns_of(Path(settings.path), first, _asked(settings), train.setting)


def _asked_of_others(settings: ParquetSettings, columns: Any) -> Any:
    """Return the columns to use beside training's: labels are in the same, or there are none."""
    return _source(settings).Asked(settings.image_column, columns.label)


def _parts(settings: ParquetSettings) -> Split[PartShards]:
    """Return the patterns of the shards: the given ones, else those that the files' names imply."""
    root, source = Path(settings.path), _source(settings)

    def evaluated(train: PartShards) -> Parts:
        asked = _asked_of_others(settings, _trained(settings, train)[1])
        return evaluated_parts(root, holds_labels=lambda paths: bool(source.has_labels(root, paths, asked)))

    return patterns(settings, lambda: train_pattern(root), evaluated)


def _shards(settings: ParquetSettings, part: PartShards) -> tuple[str, ...]:
    """Return the paths of a part's shards. Raises UserError if one is missing."""
    root = Path(settings.path)
    paths = shards_of(root, part.pattern, part.setting)
    if not part.given:
        require_complete(root, paths, part.setting)
    return paths


def _check_shards(settings: ParquetSettings) -> Split[PartShards]:
    """Return the parts. Raises UserError unless there are shards to train and to evaluate on, and no other classes."""
    root, parts, source = Path(settings.path), _parts(settings), _source(settings)
    require_parts(settings, parts, lambda part: _shards(settings, part))
    first, columns = _trained(settings, parts.train)
    names = columns.class_names
    if names and len(names) != settings.classes:
        raise UserError(
            f"data.number_of_classes is {settings.classes}, {root / first} names {len(names)}; "
            f"set data.number_of_classes={len(names)}"
        )
    for part in parts.there[1:]:
        path = _shards(settings, part)[0]
        theirs = source.columns_of(root, path, _asked_of_others(settings, columns), part.setting)
        source.require_same_classes(root, (first, columns), (path, theirs), part.setting)
    return parts


def _samples(settings: ParquetSettings) -> Split[ParquetShards]:
    root, source, parts = Path(settings.path), _source(settings), _check_shards(settings)
    unwanted = excluded(settings, settings.exclude, parts.map(lambda part: _shards(settings, part)))
    asked = _asked_of_others(settings, _trained(settings, parts.train)[1])

    def shards(part: PartShards) -> ParquetShards:
        found: ParquetShards = source.list_parquet(
            root,
            _shards(settings, part),
            settings.classes,
            unwanted,
            asked=_asked(settings) if part is parts.train else asked,
            setting=part.setting,
            every_class=part is parts.train,
        )
        return found

    return parts.map(shards)
