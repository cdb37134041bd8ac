"""A check of which PNG files all decoders read alike, by their chunks, before a decoder sees them (ISO/IEC 15948).

A file is 8 fixed bytes, then chunks: length (4 bytes), name (4), content, checksum of name and content (4).
"""

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
"""Chunks that do not change how pixels are read. Chunks with EXIF data, transparent colours or frames may."""
_LENGTHS = {b"cHRM": 32, b"gAMA": 4, b"pHYs": 9, b"sRGB": 1}
"""Lengths, in bytes, of chunks that Pillow reads: it refuses shorter ones, DALI does not."""
_MOST_TEXT = 1 << 16
"""Most bytes of all texts: Pillow limits them."""
_METADATA = (b"Raw profile", b"XML:")
"""First bytes of texts with EXIF or XMP data."""
_PALETTES = {0: (0,), 2: (0, 1), 3: (1,), 4: (0,), 6: (0, 1)}
"""Numbers of palettes that are allowed, by kind of colour: byte 25 of a file."""
_HEAD = struct.Struct(">L4s")


class _OddError(Exception):
    """An unusual file. It may be good; Pillow decides."""


def is_plain(content: Bytes) -> bool:
    """True if the file is undamaged, of 8 bits a channel, not interlaced, and without metadata that change pixels."""
    try:
        names = [name for name, _ in groupby(_chunks(content.data))]
    except _OddError:
        return False
    if names[:1] != [HEADER] or names[-1] != END or any(names.count(name) != 1 for name in (HEADER, PIXELS, END)):
        return False
    before = names.count(PALETTE) == names[: names.index(PIXELS)].count(PALETTE)
    return before and names.count(PALETTE) in _PALETTES.get(content[25], ())


def _chunks(data: memoryview) -> Iterator[bytes]:
    """Yield the names of all chunks. Raises _OddError for a chunk that is damaged or unusual."""
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
    """True for 8 bits a channel, the only kinds of compression and filters, and no interlacing."""
    return len(header) == 13 and header[8] == 8 and header[10:] == bytes(3)
