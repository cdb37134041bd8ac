"""Parquet files of images, read with care: what they hold is untrusted, and is bounded before it is read.

pyarrow reads footers and columns. Whatever it raises at a damaged file becomes an UnusableError.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.common.files import open_regular, require_regular
from pipelines.common.text import cut
from pipelines.sources.parquet_columns import Columns, chosen
from pipelines.sources.parquet_footer import FooterTable, read_table, require_known, require_small
from pipelines.sources.parquet_pages import pages
from pipelines.sources.parquet_places import Chunk
from pipelines.sources.tar_headers import UnusableError


@dataclass(frozen=True)
class Footer:
    """The end of a parquet file, which says what it holds."""

    columns: Columns
    groups: NDArray[np.int64]
    """[row groups]: their numbers of rows."""
    sizes: NDArray[np.int64]
    """[row groups]: bytes of their images, as the footer tells."""
    digest: str
    """Checksum of the footer. It tells where each column of each row group lies, and how long it is."""


@dataclass(frozen=True)
class Group:
    """The images of a row group in memory, and how they lie in the file."""

    images: Any
    """pyarrow's ChunkedArray [rows] of bytes, or of a dictionary of bytes."""
    chunk: Chunk

    def image(self, row: int) -> memoryview | None:
        """Return the bytes of an image; None if there are none."""
        value = self.images[row]
        while isinstance(value, pa.DictionaryScalar) and value.is_valid:
            value = value.value
        return memoryview(value.as_buffer()) if value.is_valid else None


@contextmanager
def told() -> Iterator[None]:
    """Turn what pyarrow and the system raise into UnusableError. Memory that is short stays what it is."""
    try:
        yield
    except (MemoryError, UnusableError):
        raise
    except Exception as error:  # noqa: BLE001 - pyarrow raises nearly anything at damaged data
        if isinstance(error, OSError) and error.errno is not None:
            unusable = UnusableError(f"cannot be read ({_said(error.strerror)}); make it readable")
            unusable.errno = error.errno
            raise unusable from None
        raise UnusableError(f"cannot be read as parquet ({_said(error)}); copy it anew") from None


def _said(error: object) -> str:
    return cut(" ".join(str(error).split()) or type(error).__name__, 200)


def read_footer(path: Path, image_column: str | None, label_column: str | None) -> Footer:
    """Read the footer of a file. Raises UnusableError, also if it has no such columns."""
    with told():
        table = read_table(path)
        with _opened(path) as file:
            columns = chosen(file.schema_arrow, image_column, label_column)
            _require_flat(file.schema, columns.leaf)
        chunks = [table.chunk(group, columns.leaf) for group in range(len(table.rows))]
        for chunk in chunks:
            require_known(chunk)
        sizes = [chunk.unpacked for chunk in chunks]
        return Footer(columns, np.array(table.rows, dtype=np.int64), np.array(sizes, dtype=np.int64), table.digest)


def read_labels(path: Path, column: str, *, some: bool = False) -> NDArray[np.int64]:
    """Return the labels of the rows, int64 [rows], or of the first row group that has rows. Raises UnusableError."""
    with told():
        table = read_table(path)
        groups = [group for group, rows in enumerate(table.rows) if rows]
        with _opened(path) as file:
            found = [_labels(path, file, table, group, column) for group in (groups[:1] if some else groups)]
        return np.concatenate([np.empty(0, dtype=np.int64), *found])


def _labels(path: Path, file: Any, table: FooterTable, group: int, column: str) -> NDArray[np.int64]:
    _stored(path, table, group, column)
    labels = file.read_row_group(group, columns=[column], use_threads=False).column(0)
    if labels.null_count:
        row = sum(table.rows[:group]) + int(np.argmax(labels.is_null().to_numpy()))
        raise UnusableError(f"has no label in row {row} ({column} is null); label it, or remove the row")
    _require_whole(len(labels), table, group)
    return np.asarray(labels.cast(pa.int64()).to_numpy(), dtype=np.int64)


def read_group(path: Path, group: int, columns: Columns) -> Group:
    """Read the images of a row group. Raises UnusableError."""
    with told():
        table = read_table(path)
        if group >= len(table.rows):
            raise UnusableError(f"has no row group {group}, as it had before: it has changed")
        place = table.chunk(group, columns.leaf)
        content = _stored(path, table, group, columns.leaf)
        # As a dictionary where they are stored as one: a million rows may all be the same large image.
        with _opened(path, read_dictionary=[columns.leaf]) as file:
            images = file.read_row_group(group, columns=[columns.leaf], use_threads=False).column(0)
            nullable = _require_flat(file.schema, columns.leaf)
        if columns.image != columns.leaf:
            images = images.flatten()[0]
        images.validate(full=True)  # Dictionaries may lack what is asked of them.
        _require_whole(len(images), table, group)
        return Group(images, Chunk(content, place.start, place.codec, nullable))


@contextmanager
def _opened(path: Path, **options: Any) -> Iterator[Any]:
    require_regular(path, os.stat(path), None)
    with pq.ParquetFile(path, pre_buffer=False, **options) as file:
        yield file


def _stored(path: Path, table: FooterTable, group: int, leaf: str) -> memoryview:
    """Read a column of a row group as it is stored, and hold its pages against the bounds. Raises UnusableError."""
    place = table.chunk(group, leaf)
    with open_regular(path) as raw:
        content = memoryview(os.pread(raw.fileno(), place.size, place.start))
    if len(content) < place.size:
        raise UnusableError(f"ends at byte {place.start + len(content):,}, within row group {group}: it has changed")
    require_small(sum(page.unpacked for page in pages(content, table.rows[group])))
    return content


def _require_whole(values: int, table: FooterTable, group: int) -> None:
    if values != table.rows[group]:
        raise UnusableError(f"has {values:,} values in row group {group} of {table.rows[group]:,} rows; copy it anew")


def _require_flat(schema: Any, leaf: str) -> bool:
    """Return True if the column can be null. Raises UnusableError unless it is one column, without lists."""
    found = [schema.column(number) for number in range(len(schema)) if schema.column(number).path == leaf]
    if len(found) != 1 or found[0].max_repetition_level > 0:
        raise UnusableError(f"has no single column {leaf}, or lists in it; store an image and a label a row")
    return bool(found[0].max_definition_level > 0)
