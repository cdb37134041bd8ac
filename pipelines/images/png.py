"""Which PNG files all decoders read alike: known from their chunks, before any sees them (ISO/IEC 15948)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import groupby

from pipelines.images.encoded import Bytes

HEADER, PALETTE, PIXELS, END, TEXT = b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tEXt"
HARMLESS = frozenset(
    {HEADER, PALETTE, PIXELS, END, TEXT, b"bKGD", b"cHRM", b"gAMA", b"pHYs", b"sBIT", b"sRGB", b"tIME"}
)
"""Chunks that do not change how the pixels are read. Those with EXIF data, transparent colours or frames may."""
_LENGTHS = {b"cHRM": 32, b"gAMA": 4, b"pHYs": 9, b"sRGB": 1}
"""Of what Pillow reads, in bytes: it refuses shorter ones, DALI does not."""
_MOST_TEXT = 1 << 16
"""Bytes of all texts: Pillow has a limit on them."""
_METADATA = (b"Raw profile", b"XML:")
"""How texts with EXIF or XMP data begin."""
_PALETTES = {0: (0,), 2: (0, 1), 3: (1,), 4: (0,), 6: (0, 1)}
"""By kind of colour, the byte 25 of a file: how many palettes there may be. No other kind is known."""
_HEAD = struct.Struct(">L4s")


class _OddError(Exception):
    """The file may be good; Pillow decides."""


def is_plain(content: Bytes) -> bool:
    """Whether the file is as it was written, of 8 bits a channel, not interlaced, and without metadata that matter."""
    try:
        names = [name for name, _ in groupby(_chunks(content.data))]
    except _OddError:
        return False
    if names[:1] != [HEADER] or names[-1] != END or any(names.count(name) != 1 for name in (HEADER, PIXELS, END)):
        return False
    before = names.count(PALETTE) == names[: names.index(PIXELS)].count(PALETTE)
    return before and names.count(PALETTE) in _PALETTES.get(content[25], ())


def _chunks(data: memoryview) -> Iterator[bytes]:
    """The names of all chunks, each looked at."""
    position, texts = 8, 0
    while position < len(data):
        if position + 12 > len(data):
            raise _OddError
        length, name = _HEAD.unpack_from(data, position)
        start, end = position + 8, position + 8 + length
        if name not in HARMLESS or zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise _OddError
        head = data[start : min(end, start + 13)].tobytes()
        if (name == TEXT and head.startswith(_METADATA)) or (name == HEADER and not _is_simple(head)):
            raise _OddError
        texts += length if name == TEXT else 0
        if _LENGTHS.get(name, length) != length or texts > _MOST_TEXT:
            raise _OddError
        yield name
        position = end + 4


def _is_simple(header: bytes) -> bool:
    """8 bits a channel, and the one kind of compression, of filters, of no interlacing."""
    return len(header) == 13 and header[8] == 8 and header[10:] == bytes(3)
