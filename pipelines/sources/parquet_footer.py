"""The footer of a parquet file: its row groups, and where the columns of each lie. All of it is checked.

Numbers of fields are those of parquet's own definition, `parquet.thrift`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.common.files import open_regular
from pipelines.sources.base import digest
from pipelines.sources.parquet_thrift import Struct, read_struct
from pipelines.sources.tar_headers import UnusableError

LARGEST_FOOTER = 16 << 20
"""Bytes. One of 5,000 row groups has 2 MB."""
MOST_ROWS_IN_GROUP = 1 << 20
MOST_BYTES_IN_GROUP = 1 << 30
"""Bytes of a column in a row group: it is read whole at least once."""
_MAGIC = b"PAR1"
CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "LZO", "BROTLI", "LZ4", "ZSTD", "LZ4_RAW")
_ENCODINGS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 3: "RLE", 4: "BIT_PACKED", 8: "RLE_DICTIONARY"}
_SMALLER = "write it anew with row_group_size=100"


@dataclass(frozen=True)
class ChunkPlace:
    """The bytes of a column in a row group."""

    start: int
    size: int
    unpacked: int
    """Bytes when decompressed, as the footer tells."""
    codec: str
    encodings: tuple[int, ...]


@dataclass(frozen=True)
class FooterTable:
    """The row groups of a file: rows of each, and the place of each column by its path, such as `image.bytes`."""

    rows: tuple[int, ...]
    columns: tuple[dict[str, ChunkPlace], ...]
    digest: str
    """Checksum of the footer."""

    def chunk(self, group: int, path: str) -> ChunkPlace:
        """Return the place of a column. Raises UnusableError if it has no bounded one."""
        if (found := self.columns[group].get(path)) is None:
            raise UnusableError(f"lacks column {path} in row group {group}; copy it anew")
        require_small(max(found.size, found.unpacked))
        return found


def read_table(path: Path) -> FooterTable:
    """Read the footer. Raises UnusableError or OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        end = os.pread(file.fileno(), 8, max(size - 8, 0))
        length = int.from_bytes(end[:4], "little")
        if end[4:] != _MAGIC or os.pread(file.fileno(), 4, 0) != _MAGIC:
            raise UnusableError("is no parquet file, or truncated; copy it anew")
        if length > min(size - 12, LARGEST_FOOTER):
            raise UnusableError(f"is damaged: its footer would have {length:,} bytes; copy it anew")
        content = os.pread(file.fileno(), length, size - 8 - length)
    try:
        return _table(content, size)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise UnusableError("is damaged: its footer lacks what a footer has; copy it anew") from None


def _table(content: bytes, size: int) -> FooterTable:
    footer, _ = read_struct(memoryview(content))
    groups = footer[4]
    rows = tuple(_number(group[3]) for group in groups)
    if min(rows, default=0) < 0 or sum(rows) != footer[3] or sum(rows) > size:
        raise UnusableError(f"declares {sum(rows):,} rows, which it cannot hold; copy it anew")
    if max(rows, default=0) > MOST_ROWS_IN_GROUP:
        raise UnusableError(f"has a row group of {max(rows):,} rows, more than {MOST_ROWS_IN_GROUP:,}; {_SMALLER}")
    columns = tuple(dict(_column(column[3], size) for column in group[1]) for group in groups)
    return FooterTable(rows, columns, digest(content))


def _column(about: Struct, size: int) -> tuple[str, ChunkPlace]:
    """Return the path of a column, and its place in a file of `size` bytes."""
    starts = [_number(about[field]) for field in (9, 11) if field in about]
    start = min(start for start in starts if start > 0)
    place = ChunkPlace(start, _number(about[7]), _number(about[6]), CODECS[_number(about[4])], tuple(about[2]))
    if min(place.size, place.unpacked, about[4]) < 0 or start + place.size > size:
        raise UnusableError("is truncated, or damaged: a column lies beyond its end; copy it anew")
    return ".".join(name.decode() for name in about[3]), place


def require_known(place: ChunkPlace) -> None:
    """Raise UnusableError for encodings of images that may stand for any number of bytes, and are hardly ever used."""
    if others := [encoding for encoding in place.encodings if encoding not in _ENCODINGS]:
        raise UnusableError(
            f"has images in parquet's encoding {others[0]}, not plain or by a dictionary; write it anew"
        )


def require_small(size: int) -> None:
    """Raise UnusableError for too many bytes of a column in a row group."""
    if not 0 <= size <= MOST_BYTES_IN_GROUP:
        raise UnusableError(
            f"has a row group with {size:,} bytes of a column, more than {MOST_BYTES_IN_GROUP:,}; {_SMALLER}"
        )


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(value)
    return value
