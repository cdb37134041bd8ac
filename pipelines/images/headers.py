"""Headers of encoded images, and what is refused by its header before memory or time is spent on pixels."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from dataclasses import dataclass

from pipelines.images.encoded import Bytes
from pipelines.images.jpeg import Jpeg, structure

MOST_TIMES_AS_LONG = 1000
"""Largest ratio of the sides. Resized to a shorter side of 256, such an image has 65 million pixels."""
MOST_SCANS = 100
"""Most scans of a JPEG; progressive ones have about ten. Each passes over all pixels, yet may take a few bytes."""
MOST_TAGS = 4096
"""Most tags of a TIFF file; usual are twenty."""
MOST_VALUES = 1 << 20
"""Most values of a tag, such as the offsets of strips. Each becomes a Python object."""
UNKNOWN = "is no image of a known format, or its header is damaged"

_MAGIC = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
}
"""First bytes of files, by Pillow's name of the format: the formats that both Pillow and DALI read."""
_ANY_MAGIC = re.compile(b"|".join(b"(?P<%s>%s)" % (name.encode(), start) for name, start in _MAGIC.items()), re.DOTALL)
HEAD = 16
"""Bytes from which the format is known."""


class BadImageError(ValueError):
    """A refused image. The message is the rest of a sentence that begins with its name."""


Size = tuple[int, int]
"""Width and height."""


@dataclass(frozen=True)
class Header:
    """Facts about an image that are known before it is decoded."""

    format: str
    size: Size | None = None
    """None if the first bytes do not tell it."""
    jpeg: Jpeg | None = None


def format_of(content: Bytes) -> str | None:
    """Return Pillow's name of the format, by the first bytes; None if it is unknown."""
    found = _ANY_MAGIC.match(content[:HEAD].data)
    return found and found.lastgroup


def checked(content: Bytes, most_pixels: int) -> Header:
    """Return the header. Raises BadImageError if the image must not be decoded."""
    if not len(content):
        raise BadImageError("is empty")
    name = format_of(content)
    if name is None:
        raise BadImageError(UNKNOWN)
    if name == "JPEG":
        return _jpeg(structure(content), most_pixels)
    if name == "TIFF":
        _check_tiff(content.data, most_pixels)
    size = {"PNG": _png_size, "WEBP": _webp_size}.get(name, _unknown_size)(content[:30].tobytes())
    if size is None:
        return Header(name)
    require_size(*size, most_pixels)
    return Header(name, size)


def _jpeg(jpeg: Jpeg, most_pixels: int) -> Header:
    if jpeg.width:
        require_size(jpeg.width, jpeg.height, most_pixels)
    require_scans(jpeg.scans, jpeg.width * jpeg.height, most_pixels)
    return Header("JPEG", (jpeg.width, jpeg.height) if jpeg.width else None, jpeg)


def require_scans(scans: int, pixels: int, most_pixels: int) -> None:
    """Raise BadImageError if a JPEG takes too long to decode: time is proportional to scans times pixels.

    An image of `most_pixels` may have twice the usual ten scans.
    """
    if scans > MOST_SCANS:
        raise BadImageError(f"has {scans:,} scans, more than {MOST_SCANS}; decoding takes minutes")
    if scans * pixels > 20 * most_pixels:
        raise BadImageError(f"has {scans} scans of {pixels:,} pixels; 20 are decoded of {most_pixels:,}")


def require_size(width: int, height: int, most_pixels: int) -> None:
    """Raise BadImageError for an empty, too large or too long image. Sides are in pixels."""
    if width < 1 or height < 1:
        raise BadImageError(f"declares {width} x {height} pixels")
    if width * height > most_pixels:
        raise BadImageError(
            f"declares {width:,} x {height:,} pixels, more than the {most_pixels:,} of data.most_pixels"
        )
    if max(width, height) > MOST_TIMES_AS_LONG * min(width, height):
        raise BadImageError(
            f"declares {width:,} x {height:,} pixels, one side over {MOST_TIMES_AS_LONG:,} times the other"
        )


def _png_size(head: bytes) -> Size | None:
    if head[12:16] != b"IHDR" or len(head) < 24:
        return None
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _webp_size(head: bytes) -> Size | None:
    """Return the size. It must be known before Pillow opens the file, which allocates memory for all pixels."""
    if head[12:16] == b"VP8X" and len(head) >= 30:
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L" and len(head) >= 25:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if head[12:16] == b"VP8 " and len(head) >= 30:
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return None


def _unknown_size(head: bytes) -> None:
    """Return None: Pillow reads these headers without allocating memory, and its size is checked then."""


_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value, by TIFF's number of its type."""
_SHORT = 3
_TILE = (322, 323)
"""TIFF's tags of a tile's width and height."""
_DIRECTORIES = (34665, 34853, 40965)
"""TIFF's tags that point to more tags."""


def check_tags(data: memoryview, most: int) -> dict[int, int]:
    """Return the first value of each tag of a TIFF file. Raises BadImageError if all values take over `most` bytes."""
    order, big = "<" if data[0] == ord("I") else ">", 43 in data[2:4]
    try:
        (place,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
        return _tags(data, place, order, big, most)
    except (struct.error, OverflowError):
        raise BadImageError(UNKNOWN) from None


def _check_tiff(data: memoryview, most_pixels: int) -> None:
    """Raise BadImageError for tags that take too much memory: Pillow reads all values when it opens the file.

    It also reads the directories that some tags point to.
    """
    values = check_tags(data, len(data))
    order, big = "<" if data[0] == ord("I") else ">", 43 in data[2:4]
    for pointer in _DIRECTORIES:
        with suppress(struct.error, OverflowError):  # Pillow continues without them.
            _tags(data, values.get(pointer, len(data)), order, big, len(data))
    width, height = (values.get(tag, 1) for tag in _TILE)
    if width * height > most_pixels:
        raise BadImageError(
            f"has tiles of {width:,} x {height:,} pixels, more than the {most_pixels:,} of data.most_pixels"
        )


def _tags(data: memoryview, place: int, order: str, big: bool, most: int) -> dict[int, int]:
    """Return the value field of each tag of a TIFF directory. Raises struct.error where the data end.

    A field holds the first value, or the offset of values that do not fit into it.
    """
    number = order + ("Q" if big else "H")
    (count,) = struct.unpack_from(number, data, place)
    entry = struct.Struct(order + ("HHQQ" if big else "HHLL"))
    if count * entry.size > len(data):
        raise BadImageError(UNKNOWN)
    if count > MOST_TAGS:
        raise BadImageError(f"has {count:,} TIFF tags, more than {MOST_TAGS:,}")
    found, size = {}, 0
    start = place + struct.calcsize(number)
    for at in range(start, start + count * entry.size, entry.size):
        tag, kind, values, value = entry.unpack_from(data, at)
        one = _SIZES.get(kind, 0)
        size += values * one
        if size > most or (values > MOST_VALUES and one > 1):
            raise BadImageError(f"declares {values:,} values of TIFF tag {tag}, which is damage, or meant to harm")
        if kind == _SHORT:  # A short is in the first bytes of the field.
            value = value >> (48 if big else 16) if order == ">" else value & 0xFFFF
        found[tag] = value
    return found
