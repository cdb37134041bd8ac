"""Write zip archives whose entries the caller compresses: zipfile's own interface does not let one choose how.

An archive is its entries one after the other, each with a header before its bytes, and then the directory: a record
for each entry, and a last record that tells where the directory begins. Numbers are little-endian. A size, an offset
or a count that does not fit stands in a field of the zip64 extension, and all ones stand in its place.
(PKWARE's APPNOTE.TXT, sections 4.3 and 4.5)
"""

from __future__ import annotations

import struct
import zlib
from typing import IO, NamedTuple

STORED, DEFLATED = 0, 8

_ONES, _SHORT_ONES = 0xFFFF_FFFF, 0xFFFF
_LARGE = _ONES
"""Sizes and offsets from here on need zip64."""
_NEEDS, _NEEDS_ZIP64 = 20, 45
"""Versions of the format: 2.0 and 4.5."""
_MADE_ON_UNIX = 3
_FOR_ITS_OWNER = 0o600 << 16
_NO_DATE = 0x0021
"""1 January 1980, the earliest: the same content gives the same file."""


class _Entry(NamedTuple):
    name: bytes
    method: int
    crc: int
    packed: int
    """Bytes in the archive."""
    size: int
    """Bytes when unpacked."""
    offset: int
    """Position of its header in the archive."""

    @property
    def is_large(self) -> bool:
        return max(self.packed, self.size, self.offset) >= _LARGE


class ZipWriter:
    """Writes entries to a file that need not be seekable, then the directory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0
        self._entries: list[_Entry] = []

    def add(self, name: str, content: bytes, deflated: bytes | None = None) -> None:
        """Append an entry: its content, or what its content was deflated to. `name` is ASCII."""
        stored = content if deflated is None else deflated
        method = STORED if deflated is None else DEFLATED
        entry = _Entry(name.encode("ascii"), method, zlib.crc32(content), len(stored), len(content), self._at)
        self._entries.append(entry)
        self._write(_header(entry))
        self._write(stored)

    def finish(self) -> None:
        """Write the directory. Nothing can be added after that."""
        begin = self._at
        for entry in self._entries:
            self._write(_record(entry))
        self._write(_end(len(self._entries), begin, self._at - begin))

    def _write(self, piece: bytes) -> None:
        self._file.write(piece)
        self._at += len(piece)


def _header(entry: _Entry) -> bytes:
    """Return what stands before an entry's bytes."""
    zip64 = struct.pack("<HHQQ", 1, 16, entry.size, entry.packed) if entry.is_large else b""
    fields = (*_common(entry), len(entry.name), len(zip64))
    return struct.pack("<4sHHHHHLLLHH", b"PK\3\4", *fields) + entry.name + zip64


def _record(entry: _Entry) -> bytes:
    """Return an entry's record in the directory."""
    zip64 = struct.pack("<HHQQQ", 1, 24, entry.size, entry.packed, entry.offset) if entry.is_large else b""
    needs = _NEEDS_ZIP64 if entry.is_large else _NEEDS
    comment, disk, attributes = 0, 0, 0
    place = (comment, disk, attributes, _FOR_ITS_OWNER, _ONES if entry.is_large else entry.offset)
    fields = (needs, _MADE_ON_UNIX, *_common(entry), len(entry.name), len(zip64), *place)
    return struct.pack("<4sBBHHHHHLLLHHHHHLL", b"PK\1\2", *fields) + entry.name + zip64


def _common(entry: _Entry) -> tuple[int, ...]:
    """Return the fields that header and record share: version, flags, method, time, date, checksum, sizes."""
    needs, sizes = _NEEDS, (entry.packed, entry.size)
    if entry.is_large:
        needs, sizes = _NEEDS_ZIP64, (_ONES, _ONES)
    return (needs, 0, entry.method, 0, _NO_DATE, entry.crc, *sizes)


def _end(count: int, begin: int, size: int) -> bytes:
    """Return the last record, for a directory of `count` records and `size` bytes that begins at `begin`."""
    zip64 = b""
    if count >= _SHORT_ONES or max(begin, size) >= _LARGE:
        disks, versions, rest = (0, 0), (_NEEDS_ZIP64, _NEEDS_ZIP64), 44
        zip64 = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", rest, *versions, *disks, count, count, size, begin)
        zip64 += struct.pack("<4sLQL", b"PK\6\7", 0, begin + size, 1)
        count, size, begin = _SHORT_ONES, _ONES, _ONES
    return zip64 + struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count, count, size, begin, 0)
