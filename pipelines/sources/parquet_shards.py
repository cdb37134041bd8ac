"""Shards of images in parquet files, as a source: Hugging Face's layout, and others with an image and a label a row."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.common.errors import UserError
from pipelines.common.text import some_of
from pipelines.images.encoded import MOST_BYTES, Bytes
from pipelines.sources.base import digest
from pipelines.sources.class_folders import require_names
from pipelines.sources.excluded import above
from pipelines.sources.labels import named_or_numbered, require_labels
from pipelines.sources.parquet_columns import Columns, NoLabelsError
from pipelines.sources.parquet_file import Footer, read_footer, read_labels
from pipelines.sources.parquet_reader import GroupPlace, ParquetReader
from pipelines.sources.tar_headers import UnusableError

READERS = 8
"""Threads that read footers and labels: their time is that of the storage."""


@dataclass(frozen=True)
class Asked:
    """Names of columns in the settings; None to find them."""

    image: str | None = None
    label: str | None = None


@dataclass(frozen=True, eq=False)
class ParquetShards:
    """An `Encoded` source in arrays: objects would take several times the memory."""

    root: Path
    paths: tuple[str, ...]
    """The shards, relative to the root."""
    rows: NDArray[np.int64]
    """[n]: the samples' rows, counted over all shards."""
    labels: NDArray[np.int64]
    starts: NDArray[np.int64]
    """[row groups + 1], starting with 0: the first row of each row group, counted over all shards."""
    sizes: NDArray[np.int64]
    """[row groups]: bytes of their images, about."""
    firsts: NDArray[np.int64]
    """[shards + 1], starting with 0: the first row group of each shard."""
    class_names: tuple[str, ...]
    digests: tuple[str, ...]
    """Checksums of the footers."""
    reader: ParquetReader = field(repr=False)

    @cached_property
    def listing(self) -> str:
        texts = "\0".join((*self.paths, *self.digests)).encode(errors="surrogateescape")
        return digest(texts, self.rows.tobytes(), self.labels.tobytes())

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of the shard, and of the row group among all."""
        group = int(np.searchsorted(self.starts, self.rows[index], side="right")) - 1
        return int(np.searchsorted(self.firsts, group, side="right")) - 1, group

    def name(self, index: int) -> str:
        shard, _ = self._place(index)
        return f"{self.paths[shard]}/{self.rows[index] - self.starts[self.firsts[shard]]}"

    def encoded(self, index: int, most: int = MOST_BYTES) -> Bytes:
        shard, group = self._place(index)
        path = os.path.join(self.root, self.paths[shard])
        place = GroupPlace(path, int(group - self.firsts[shard]), int(self.sizes[group]))
        return self.reader.image(place, int(self.rows[index] - self.starts[group]), most)

    def reopen(self) -> None:
        self.reader.reopen()


def list_parquet(
    root: Path,
    paths: Iterable[str],
    number_of_classes: int,
    excluded: frozenset[str] = frozenset(),
    *,
    asked: Asked = Asked(),
    setting: str = "data.path",
    every_class: bool = True,
) -> ParquetShards:
    """Return the samples of shards, given relative to the root, in their order.

    `excluded` are names of samples to skip; names of other shards are ignored. `setting` names the shards in messages.
    Raises UserError if a shard or a label is unusable, or, with `every_class`, if a class has no sample.
    """
    paths = tuple(paths)
    footers = read_footers(root, paths, asked, setting)
    columns = footers[0].columns
    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(lambda path: _labels(root / path, columns.label, setting), paths))
    labels = np.concatenate(parts)
    found = ParquetShards(
        root,
        paths,
        np.arange(len(labels), dtype=np.int64),
        labels,
        _sums(np.concatenate([footer.groups for footer in footers])),
        np.concatenate([footer.sizes for footer in footers]),
        _sums(np.array([len(footer.groups) for footer in footers], dtype=np.int64)),
        named_or_numbered(columns.class_names, number_of_classes),
        tuple(footer.digest for footer in footers),
        ParquetReader(columns),
    )
    kept = _without(found, excluded)
    require_labels(
        kept.labels,
        kept.class_names,
        lambda index: f"{kept.name(index)} in {root}",
        where=f"{root / paths[0]} and the like",
        setting=setting,
        every_class=every_class,
    )
    return kept


def _sums(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])


def read_footers(root: Path, paths: tuple[str, ...], asked: Asked, setting: str) -> list[Footer]:
    """Read the footers of shards. Raises UserError unless all have the same columns and classes."""
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda path: _footer(root / path, asked, setting), paths))
    for path, footer in zip(paths, found, strict=True):
        if footer.columns != found[0].columns:
            raise UserError(
                f"{setting}: {root / path} has other columns or names of classes than {paths[0]}; "
                "give shards of one data set"
            )
    require_names(f"{root / paths[0]} has the class", found[0].columns.class_names)
    return found


def _footer(path: Path, asked: Asked, setting: str) -> Footer:
    with _told(path, setting):
        return read_footer(path, asked.image, asked.label)


@contextmanager
def _told(path: Path, setting: str) -> Iterator[None]:
    try:
        yield
    except UnusableError as error:
        raise UserError(f"{setting}: {path} {error}") from None


def _labels(path: Path, column: str, setting: str, *, some: bool = False) -> NDArray[np.int64]:
    with _told(path, setting):
        return read_labels(path, column, some=some)


def columns_of(root: Path, path: str, asked: Asked, setting: str) -> Columns:
    """Return the columns of a shard, and the names of the classes. Raises UserError."""
    return read_footers(root, (path,), asked, setting)[0].columns


def require_same_classes(root: Path, trained: tuple[str, Columns], other: tuple[str, Columns], setting: str) -> None:
    """Raise UserError if two shards name their classes otherwise. Shards that name none may be of the same."""
    (first, ours), (path, theirs) = trained, other
    if ours.class_names and theirs.class_names and ours.class_names != theirs.class_names:
        pairs = zip_longest(ours.class_names, theirs.class_names, fillvalue="nothing")
        label, (mine, yours) = next((label, pair) for label, pair in enumerate(pairs) if pair[0] != pair[1])
        raise UserError(
            f"{setting}: {root / path} names other classes than {first}: label {label} is {yours} there, and {mine} "
            "where the network is trained; give shards of one data set"
        )


def count_classes(root: Path, paths: tuple[str, ...], asked: Asked, setting: str) -> int:
    """Count the names of the classes, else the labels in the shards, from 0 on. Raises UserError."""
    if names := columns_of(root, paths[0], asked, setting).class_names:
        return len(names)
    labels = [
        _labels(root / path, footer.columns.label, setting)
        for path, footer in zip(paths, read_footers(root, paths, asked, setting), strict=True)
    ]
    return 1 + int(np.concatenate(labels).max(initial=-1))


def has_labels(root: Path, paths: Sequence[str], asked: Asked) -> bool:
    """Return False if the shards have no column of labels, or the first ones are all below 0: none.

    Shards and row groups without a row tell nothing: the first that has one decides.

    Raises UserError, also for a column of labels of another name than `asked`.
    """
    for path in paths:
        if (labels := _first_labels(root / path, asked)) is None:
            return False
        if len(labels):
            return bool((labels >= 0).any())
    return False


def _first_labels(path: Path, asked: Asked) -> NDArray[np.int64] | None:
    """Return the labels of a shard's first row group that has rows, int64 [rows]; None without such a column."""
    with _told(path, "data.path"):
        try:
            column = read_footer(path, asked.image, asked.label).columns.label
        except NoLabelsError as error:
            if error.others:
                raise UnusableError(
                    f"has no column {asked.label!r}, which holds the labels of the training shards, and "
                    f"{some_of(error.others)} might; name it so, or leave this part out by giving data.val_shards"
                ) from None
            return None
    return _labels(path, column, "data.path", some=True)


def _without(found: ParquetShards, excluded: frozenset[str]) -> ParquetShards:
    unwanted = np.zeros(len(found.rows), dtype=bool)
    numbers = {path: number for number, path in enumerate(found.paths)}
    for name in excluded:
        for path in above(name):
            if (number := numbers.get(path)) is None:
                continue
            row = name[len(path) + 1 :]
            first, end = found.starts[found.firsts[[number, number + 1]]]
            if not re.fullmatch(r"\d{1,18}", row, re.ASCII) or int(row) >= end - first:
                raise UserError(
                    f"data.exclude: {name} is to be skipped, but the shard has no such row; correct the list of names"
                )
            unwanted[first + int(row)] = True
    if not unwanted.any():
        return found
    return dataclasses.replace(found, rows=found.rows[~unwanted], labels=found.labels[~unwanted])
