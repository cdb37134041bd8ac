"""The structure of a JPEG file, read from its markers before any decoder sees it (ITU-T T.81, annex B).

A file is a chain of segments: FF D8; then FF, a marker and, for most markers, a length of two bytes that counts itself
and the content; at the end FF D9. After the segment of a scan (FF DA) follow entropy-coded data without a length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pipelines.images.encoded import Bytes

BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
END, SCAN, APP0, APP1, APP14, APP15, COMMENT = 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
TABLES = (0xC4, 0xDB, 0xDD)
"""Huffman and quantisation tables, restart interval."""
MOST_SEGMENTS = 4096
"""Most segments that are followed. A usual file has about twenty."""
SAMPLING = {(h, v) for h in (1, 2) for v in (1, 2)}
"""Sampling factors of luminance, horizontal and vertical, beside 1x1 chrominance: 4:4:4, 4:2:2, 4:4:0, 4:2:0."""

# A marker after the entropy-coded data of a scan. Within the data FF 00 is a byte FF, FF D0 to FF D7 are places where
# decoding may restart, and FF FF is a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


@dataclass
class Jpeg:
    """Content of the markers."""

    width: int = 0
    height: int = 0
    scans: int = 0
    app1: list[tuple[int, int]] = field(default_factory=list)
    """First byte, and first byte behind, each segment with EXIF or XMP data."""
    metadata: bool = False
    """True if there is more metadata than the usual notes of JFIF and Adobe."""
    end: int | None = None
    """First byte behind the end mark; None if there is none, or the walk ended before it."""
    plain: bool = False
    """True if whole, and of the kind that all decoders read alike: Huffman codes, 8 bits, grey or YCbCr."""
    cut: bool = False
    """True if the data end within a scan, and no other scan must follow it."""


class _OddError(Exception):
    """An unusual structure. The file may be good."""


def structure(content: Bytes) -> Jpeg:
    """Walk from marker to marker, as far as the structure is usual."""
    walk = _Walk(content.data)
    try:
        walk.to_the_end()
        walk.found.plain = walk.is_plain()
    except _OddError:
        walk.found.scans = _most_scans(content)
    except IndexError:  # The data end, or a segment reaches beyond their end, which a decoder may skip.
        walk.found.scans = _most_scans(content)
        walk.found.cut = walk.in_scan and walk.has_all_coefficients()
    return walk.found


def _most_scans(content: Bytes) -> int:
    """Return a bound on the scans that any decoder can find."""
    return bytes(content.data).count(b"\xff\xda")


class _Walk:
    """A walk over the segments. Raises IndexError where the data end."""

    def __init__(self, data: memoryview) -> None:
        self.found = Jpeg()
        self.in_scan = False
        self._data = data
        self._kind = 0
        self._components: dict[int, tuple[int, int]] = {}  # Sampling factors, by identifier.
        self._jfif = False
        self._adobe: int | None = None  # Adobe's note on the colours.
        self._last_bits: dict[int, set[int]] = {}  # Coefficients that are complete to the last bit, by component.

    def to_the_end(self) -> None:
        """Follow the segments to the end mark."""
        position = 2
        for _ in range(MOST_SEGMENTS):
            start, marker = position, self._data[position + 1]
            if self._data[start] != 0xFF:
                raise _OddError
            if marker == END:
                self.found.end = start + 2
                return
            position = start + 2 + self._short(start + 2)
            if position > len(self._data):
                raise IndexError
            self._segment(marker, start + 4, position)
            if marker == APP1:
                self.found.app1.append((start, position))
            elif marker == SCAN:
                self.found.scans += 1
                position = self._behind_scan(position)
                if self._kind != PROGRESSIVE and self._data[position + 1] != END:
                    raise _OddError
        raise _OddError

    def _segment(self, marker: int, start: int, end: int) -> None:
        """Read a segment."""
        body = bytes(self._data[start : min(end, start + 64)])
        if marker in (BASELINE, EXTENDED, PROGRESSIVE):
            self._frame(marker, body)
        elif marker == SCAN:
            self._scan(body)
        elif marker == APP14 and body[:5] == b"Adobe" and len(body) == 12:
            self._adobe = body[11]
        elif marker == APP0 and body[:5] == b"JFIF\0" and len(body) == 14:
            self._jfif = True
        elif APP0 <= marker <= APP15:
            self.found.metadata = True
        elif marker not in TABLES and marker != COMMENT:
            raise _OddError

    def _frame(self, marker: int, body: bytes) -> None:
        if self._kind or len(body) < 6 or len(body) != 6 + 3 * body[5] or body[0] != 8:
            raise _OddError
        self._kind = marker
        self.found.height, self.found.width = (int.from_bytes(body[i : i + 2], "big") for i in (1, 3))
        self._components = {body[i]: divmod(body[i + 1], 16) for i in range(6, len(body), 3)}
        if len(self._components) != body[5] or not self.found.height or not self.found.width:
            raise _OddError  # Two components of one name, or a height that a later marker gives.

    def _scan(self, body: bytes) -> None:
        if not body or len(body) != 4 + 2 * body[0] or not self._kind:
            raise _OddError
        names = body[1:-3:2]
        first, last, bits = body[-3], body[-2], body[-1] & 15
        if not set(names) <= self._components.keys():
            raise _OddError
        for name in names if bits == 0 else ():
            self._last_bits.setdefault(name, set()).update(range(first, last + 1))

    def _behind_scan(self, position: int) -> int:
        """Return the position of the marker after entropy-coded data."""
        self.in_scan = True
        found = _MARKER.search(self._data, position)
        if found is None:
            raise IndexError
        self.in_scan = False
        return found.start()

    def is_plain(self) -> bool:
        """True if all decoders give the same pixels."""
        if len(self._components) not in (1, 3):
            return False
        luminance, *others = self._components.values()
        # A baseline file of several scans may be whole, or may have scans that only some decoders read.
        if (self._kind != PROGRESSIVE and self.found.scans != 1) or luminance not in SAMPLING or set(others) - {(1, 1)}:
            return False
        if not others:
            return self.has_all_coefficients()
        # Otherwise the names of the components may mean red, green and blue.
        known = self._jfif or self._adobe == 1 or list(self._components) == [1, 2, 3]
        return known and self._adobe in (None, 1) and self.has_all_coefficients()

    def has_all_coefficients(self) -> bool:
        """True if each component has all 64 coefficients to the last bit. Progressive files use many scans."""
        return bool(self._components) and all(len(self._last_bits.get(name, ())) == 64 for name in self._components)

    def _short(self, position: int) -> int:
        return self._data[position] << 8 | self._data[position + 1]
