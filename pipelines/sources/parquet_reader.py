"""Reads images of parquet files in any order, from any thread.

The first image of a row group costs reading all of it. Then the places of its images are known, and the next ones are
read on their own. Where images have no places, the latest row groups are kept.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from pipelines.images.encoded import Bytes
from pipelines.sources.descriptors import Descriptors
from pipelines.sources.parquet_columns import Columns
from pipelines.sources.parquet_file import Group, read_group
from pipelines.sources.parquet_places import Places, image_at, places
from pipelines.sources.tar_headers import UnusableError

KEPT_GROUPS = 4
"""Row groups that a source keeps in a process."""
LARGE = 64 << 20
"""Bytes of a row group, from which on one is read at a time, and one is kept."""


@dataclass(frozen=True)
class GroupPlace:
    """A row group of a file."""

    path: str
    number: int
    size: int
    """Bytes of its images, about."""


@dataclass
class ParquetReader:
    """The state of reading in one process. A copy for another process begins with none."""

    columns: Columns
    _places: dict[tuple[str, int], Places] = field(default_factory=dict, init=False)
    _opened: Descriptors = field(default_factory=Descriptors, init=False)
    _large: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        self._group: Callable[[str, int], Group] = lru_cache(maxsize=KEPT_GROUPS)(self._read)
        self._large_group: Callable[[str, int], Group] = lru_cache(maxsize=1)(self._read)

    def __reduce__(self) -> tuple[type[ParquetReader], tuple[Columns]]:
        return ParquetReader, (self.columns,)

    def image(self, group: GroupPlace, row: int, most: int) -> Bytes:
        """Return the image in a row of a row group. Raises OSError."""
        known = self._places.get((group.path, group.number))
        if known is not None and len(known) and known[row]["start"]:
            return self._at(group.path, known[row], most)
        try:
            content = self._whole(group).image(row)
        except UnusableError as error:
            raise OSError(error.errno or errno.EBADMSG, f"{group.path} {error}") from None
        if content is None:
            raise OSError(errno.ENODATA, f"row {row} of row group {group.number} holds no image: it is null")
        _require_fit(len(content), most)
        return np.array(content, dtype=np.uint8)  # A copy: a view would keep the whole row group in memory.

    def reopen(self) -> None:
        """Close files that are kept open."""
        self._opened.clear()

    def _at(self, path: str, place: Any, most: int) -> Bytes:
        _require_fit(int(place["size"]), most)
        descriptor = self._opened.get(path)  # Held here: with its last reference it is closed.
        stored = os.pread(descriptor.number, int(place["stored"]), int(place["start"]))
        try:
            content = image_at(place, stored)
        except (OSError, ValueError):
            content = memoryview(b"")
        if len(content) < place["size"]:
            raise OSError(
                errno.EBADMSG, f"{path} holds no image at byte {place['start']}, as it did before: it has changed"
            )
        return np.frombuffer(content, dtype=np.uint8)

    def _whole(self, group: GroupPlace) -> Group:
        if group.size <= LARGE:
            return self._group(group.path, group.number)
        with self._large:
            return self._large_group(group.path, group.number)

    def _read(self, path: str, number: int) -> Group:
        found = read_group(Path(path), number, self.columns)
        if (path, number) not in self._places:
            count = len(found.images)
            self._places[path, number] = places(found.chunk, map(found.image, range(count)), count)
        return found


def _require_fit(size: int, most: int) -> None:
    if size > most:
        raise OSError(errno.EFBIG, f"has {size:,} bytes, more than {most:,}")
