"""The pages of a column chunk in a parquet file: where they lie, and where single values lie in them.

A page is the unit of compression. Its header is a struct in Thrift's compact encoding, of which three numbers matter.

Snappy, the usual compression, takes 64 KiB at a time and starts anew after each. So a value of a snappy page needs no
more than the blocks that hold it. Photographs are compressed already, and a block of them has few elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.sources.parquet_thrift import read_struct
from pipelines.sources.tar_headers import UnusableError

BLOCK = 1 << 16
"""Bytes that snappy compresses on their own."""
ELEMENTS = 256
"""Most snappy elements in a block, on average, that are walked through: more are not worth the time."""
FREE_ELEMENTS = 1 << 14
"""Elements that are walked through in any stream."""
SPARE_PAGES = 16
"""Most pages of a column chunk beyond its values: for the dictionary, and empty ones."""
_TYPE, _UNPACKED, _STORED = 1, 2, 3
DATA_PAGE, DICTIONARY_PAGE = 0, 2


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a column chunk."""

    kind: int
    start: int
    """First byte after the header, in the chunk."""
    stored: int
    """Bytes in the file."""
    unpacked: int
    """Bytes when decompressed, as the header tells."""


def pages(chunk: memoryview, values: int) -> Iterator[Page]:
    """Yield the pages of a column chunk of so many values. Raises UnusableError where it is damaged."""
    at = 0
    for _ in range(values + SPARE_PAGES):
        if at >= len(chunk):
            return
        header, start = read_struct(chunk, at)
        kind, unpacked, stored = (header.get(number) for number in (_TYPE, _UNPACKED, _STORED))
        if type(kind) is not int or type(unpacked) is not int or type(stored) is not int:
            raise _damaged("a page without sizes")
        at = start + stored
        if min(kind, unpacked, stored) < 0 or at > len(chunk):
            raise _damaged("a page of sizes that cannot be")
        yield Page(kind, start, stored, unpacked)
    raise _damaged("more pages than values")


def _damaged(what: str) -> UnusableError:
    return UnusableError(f"is damaged: it has {what}; copy it anew")


def varint(value: int) -> bytes:
    """Return a number as a snappy stream begins with it: seven bits a byte, the lowest first."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def snappy_blocks(body: memoryview, unpacked: int) -> list[int] | None:
    """Return the byte of `body` at which each block of a snappy stream begins, and its end.

    Return None if the stream is none, was not made block by block, or has too many elements.
    """
    if not body[:10].tobytes().startswith(head := varint(unpacked)):
        return None
    at, done, starts = len(head), 0, [len(head)]
    for _ in range(max(FREE_ELEMENTS, ELEMENTS * (unpacked // BLOCK))):
        if at >= len(body):
            return [*starts, at] if at == len(body) and done == unpacked else None
        at, length = _element(body, at)
        done += length
        if done % BLOCK == 0 and done < unpacked:
            starts.append(at)
        elif done // BLOCK >= len(starts) and done < unpacked:
            return None  # An element crosses the end of a block.
    return None


def _element(body: memoryview, at: int) -> tuple[int, int]:
    """Return where the element ends that begins at byte `at`, and how many bytes it stands for.

    The lowest two bits of its first byte are its kind: 0 for a literal, 1 to 3 for a copy of what came before.
    """
    tag = body[at]
    kind, upper = tag & 3, tag >> 2
    if kind == 1:
        return at + 2, 4 + (upper & 7)
    if kind:
        return at + (3 if kind == 2 else 5), upper + 1
    extra = max(upper - 59, 0)  # 60 to 63: the length is in that many bytes.
    length = 1 + (int.from_bytes(body[at + 1 : at + 1 + extra], "little") if extra else upper)
    return at + 1 + extra + length, length
