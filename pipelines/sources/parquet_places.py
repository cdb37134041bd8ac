"""The place of each image in a parquet file, where it can be read on its own: without its row group of many images.

Parquet tells no such places. They are found when a row group has been read whole, and a place is kept only if it has
given the very bytes of the image. Columns of other compressions than none and snappy have no places.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.sources.parquet_pages import BLOCK, DATA_PAGE, DICTIONARY_PAGE, Page, pages, snappy_blocks, varint

PLACE = np.dtype([("start", "<i8"), ("stored", "<u4"), ("unpacked", "<u4"), ("skipped", "<u4"), ("size", "<u4")])
"""Bytes of the file that hold an image: `stored` from `start` on. Decompressed they are `unpacked`, which is 0 for
bytes that are not compressed. The image is `size` of these, after `skipped`. A `start` of 0 is no place."""
_ENDS = 32
"""Bytes at each end by which a value is looked for."""

Places = NDArray[Any]


@dataclass(frozen=True)
class Chunk:
    """The column chunk of a row group, as it lies in the file."""

    content: memoryview
    start: int
    compression: str
    nullable: bool
    """True if data pages begin with levels, which say what is null."""


def places(chunk: Chunk, values: Iterable[memoryview | None], count: int) -> Places:
    """Return the places of so many values, a `PLACE` each; empty if there is none."""
    if chunk.compression not in ("UNCOMPRESSED", "SNAPPY"):
        return np.empty(0, PLACE)
    known = dict(_values(chunk, count))
    found = np.zeros(count, PLACE)
    if not known:
        return np.empty(0, PLACE)
    # A dictionary may hold one large image for a million rows, each of which pyarrow copies. Rows are not tried beyond
    # twice what is stored.
    left = 2 * sum(page.unpacked for page in pages(chunk.content, count))
    for row, value in enumerate(values):
        if value and (place := known.get(_key(value))) is not None and _gives(chunk, place, value):
            found[row] = place
        left -= len(value or b"")
        if left < 0:
            break
    return found if found["start"].any() else np.empty(0, PLACE)


def image_at(place: Any, stored: bytes | memoryview) -> memoryview:
    """Return the image of a place, from its bytes in the file. Raises OSError if they are damaged."""
    unpacked, skipped, size = (int(place[name]) for name in ("unpacked", "skipped", "size"))
    whole = memoryview(stored) if unpacked == 0 else _decompressed(varint(unpacked) + bytes(stored), unpacked)
    return whole[skipped : skipped + size]


def _decompressed(stream: bytes | memoryview, size: int) -> memoryview:
    return memoryview(pa.decompress(stream, decompressed_size=size, codec="snappy"))


Key = tuple[int, bytes, bytes]
_NOWHERE = (0, 0, 0, 0, 0)


def _key(value: memoryview) -> Key:
    return len(value), value[:_ENDS].tobytes(), value[-_ENDS:].tobytes()


def _gives(chunk: Chunk, place: tuple[int, ...], value: memoryview) -> bool:
    """Return True if reading at the place gives this value."""
    begin = place[0] - chunk.start
    return bytes(image_at(np.array(place, PLACE), chunk.content[begin : begin + place[1]])) == bytes(value)


def _values(chunk: Chunk, most: int) -> Iterator[tuple[Key, tuple[int, ...]]]:
    """Yield what look like values in the pages, up to `most` in each, with their places."""
    for page in pages(chunk.content, most):
        if page.kind in (DATA_PAGE, DICTIONARY_PAGE):
            body = chunk.content[page.start : page.start + page.stored]
            yield from islice(_values_in(chunk, page, body), most)


def _values_in(chunk: Chunk, page: Page, body: memoryview) -> Iterator[tuple[Key, tuple[int, ...]]]:
    blocks = None
    whole, start = body, chunk.start + page.start
    if chunk.compression == "SNAPPY":
        if (blocks := snappy_blocks(body, page.unpacked)) is None:
            return
        whole = _decompressed(body, page.unpacked)
    for at, size in _lengths(whole, levels=page.kind == DATA_PAGE and chunk.nullable):
        place = _place(start, at, size, blocks, page.unpacked) if size else _NOWHERE
        yield _key(whole[at : at + size]), place


def _lengths(page: memoryview, *, levels: bool) -> Iterator[tuple[int, int]]:
    """Yield begin and size of each value of a plain page: four bytes with the size are in front of it.

    A page in another encoding gives numbers that mean nothing, and ends soon.
    """
    at = 0
    if levels and len(page) >= 4:
        at = 4 + struct.unpack_from("<I", page)[0]
    while at + 4 <= len(page):
        (size,) = struct.unpack_from("<I", page, at)
        if at + 4 + size > len(page):
            return
        yield at + 4, size
        at += 4 + size


def _place(start: int, at: int, size: int, blocks: list[int] | None, unpacked: int) -> tuple[int, ...]:
    if blocks is None:
        return start + at, size, 0, 0, size
    first, last = at // BLOCK, max(at, at + size - 1) // BLOCK
    stored = blocks[last + 1] - blocks[first]
    return start + blocks[first], stored, min((last + 1) * BLOCK, unpacked) - first * BLOCK, at % BLOCK, size
