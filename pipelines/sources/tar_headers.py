"""The headers of a tar file: the names of its members, and the bytes at which they begin.

Python's `tarfile` reads headers of any length, follows a chain of them by recursion, and takes many truncated or
damaged files for shorter ones. So a hostile file can take all memory. Here every header is bounded, the file is read
once from front to back, and its end is checked.

Formats: ustar, pax, GNU, and the old ones. Sparse members are recognised, not read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
LONGEST_HEADER = 1 << 20
"""Most bytes of a long name, or of pax records. Linux paths have up to 4,096; there may be other attributes."""
MOST_HEADERS = 8
"""Most headers in front of one member. Writers need two or three."""
_REGULAR = frozenset(b"0\0" + b"7")
_WITHOUT_DATA = frozenset(b"123456")
"""Links, devices, folders, pipes: no bytes follow, whatever size the header gives."""
_SPARSE, _LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"SLKxg"
_EXTENSIONS = frozenset((_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, ord("X")))
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class UnusableError(Exception):
    """An unusable file: the message, with the remedy, is the rest of a sentence that begins with its name."""

    errno: int | None = None
    """The system's number of the error, where it comes from there."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file, folder, link or device in a tar."""

    name: bytes
    offset: int
    """First byte of the content."""
    size: int
    kind: int
    """Letter of the type in the header."""
    sparse: bool = False

    @property
    def is_regular(self) -> bool:
        """True if the bytes at the offset are the content."""
        return self.kind in _REGULAR and not self.sparse

    @property
    def is_folder(self) -> bool:
        """True for a folder."""
        return self.kind == ord("5")


def members(file: BinaryIO, inside: Member | None = None) -> Iterator[Member]:
    """Yield the members of a tar. Raises UnusableError where damage is reached.

    With `inside`, the tar is that member of the file. Offsets count from the beginning of the file all the same.
    """
    start = 0 if inside is None else inside.offset
    end = os.fstat(file.fileno()).st_size if inside is None else inside.offset + inside.size
    return _Reader(file, start, end).members()


@dataclass(slots=True)
class _Header:
    """A header: a block that describes what follows it."""

    block: bytes
    kind: int
    size: int

    @property
    def name(self) -> bytes:
        name = _text(self.block[:100])
        # Others put the first part of a long path there; GNU's own format has times.
        prefix = _text(self.block[345:500]) if self.block[257:263] == b"ustar\0" else b""
        return prefix + b"/" + name if prefix else name


class _Reader:
    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file = file
        self._start = start
        self._end = end
        self._at = start
        """Byte at which the next header begins."""

    @property
    def _place(self) -> int:
        """Return that byte, counted from the beginning of the tar: for messages."""
        return self._at - self._start

    def _read(self, size: int) -> bytes:
        """Read at the next header, and never beyond the tar."""
        self._file.seek(self._at)
        return self._file.read(max(0, min(size, self._end - self._at)))

    def members(self) -> Iterator[Member]:
        while (member := self._member()) is not None:
            yield member
        self._require_end()

    def _member(self) -> Member | None:
        """Return the next member, with what the headers in front of it say; None at the end mark."""
        records: dict[bytes, bytes] = {}
        long_name = b""
        for _ in range(MOST_HEADERS + 1):
            if (header := self._header()) is None:
                if records or long_name:
                    raise self._damaged("a header without a member")
                return None
            if header.kind not in _EXTENSIONS:
                return self._made(header, long_name, records)
            content = self._extension(header)
            if header.kind == _LONG_NAME:
                long_name = _text(content)
            elif header.kind != _LONG_LINK:
                found = self._records(content)
                if header.kind != _PAX_GLOBAL:
                    records = found
                elif found.keys() & {b"path", b"size"}:
                    raise UnusableError("gives all its members one name or size, in a global header; pack it anew")
        raise self._damaged(f"more than {MOST_HEADERS} headers for one member")

    def _header(self) -> _Header | None:
        block = self._read(BLOCK)
        if len(block) < BLOCK:
            self._refuse_head("whole header" if block else "bytes")
            raise self._truncated("without the mark of a tar's end")
        if not block.strip(b"\0"):
            return None
        if not _is_right(block):
            self._refuse_head("right checksum")
            raise UnusableError(
                f"is damaged, or several tars in one: at byte {self._place} it has neither a member nor the end; "
                "pack it anew"
            )
        size = _number(block[124:136])
        if size is None:
            raise self._damaged("a size that is no number")
        self._at += BLOCK
        return _Header(block, block[156], size)

    def _refuse_head(self, lacking: str) -> None:
        """Raise UnusableError if this is the first header: then the file is no tar."""
        if self._place == 0:
            head = self._read(8)
            for magic, name in _COMPRESSED.items():
                if head.startswith(magic):
                    raise UnusableError(f"is compressed ({name}), samples are read by their place; decompress it")
            raise UnusableError(f"is no tar, or damaged after byte 0 (no {lacking}); copy it anew")

    def _extension(self, header: _Header) -> bytes:
        if not 0 <= header.size <= LONGEST_HEADER:
            raise self._damaged(f"a header of {header.size:,} bytes, where a name or attributes stand")
        content = self._read(header.size)
        if len(content) < header.size:
            raise self._truncated("within a header")
        self._at += _whole_blocks(header.size)
        return content

    def _records(self, content: bytes) -> dict[bytes, bytes]:
        """Return the records of a pax header. A record is LENGTH KEY=VALUE and a line end.

        LENGTH counts all bytes of the record: 12 in "12 path=a.b" and a line end.
        """
        found: dict[bytes, bytes] = {}
        at = 0
        while at < len(content) and content[at]:
            space = content.find(b" ", at, at + 8)
            length = content[at:space] if space > 0 else b""
            end = at + int(length) if length.isdigit() else at
            key, equals, value = content[space + 1 : max(end - 1, 0)].partition(b"=")
            if not at < space < end <= len(content) or not key or not equals or content[end - 1] != ord("\n"):
                raise self._damaged("pax records that cannot be read")
            found[key] = value
            at = end
        return found

    def _made(self, header: _Header, long_name: bytes, records: dict[bytes, bytes]) -> Member:
        name = records.get(b"GNU.sparse.name") or records.get(b"path") or long_name or header.name
        size = header.size
        if (given := records.get(b"size")) is not None:
            if not re.fullmatch(rb"\d{1,19}", given):
                raise self._damaged("a size that is no number")
            size = int(given)
        if size < 0:
            raise UnusableError(f"is damaged: {_shown(name)} has {size} bytes; copy it anew")
        kind = header.kind
        if kind == 0 and header.name.endswith(b"/"):  # Old writers mark folders so.
            kind = ord("5")
        sparse = kind == _SPARSE or any(key.startswith(b"GNU.sparse.") for key in records)
        if kind == _SPARSE:
            self._pass_map(header)
        member = Member(name.rstrip(b"/") if kind == ord("5") else name, self._at, size, kind, sparse)
        if kind not in _WITHOUT_DATA:
            if self._at + size > self._end:
                raise self._truncated(f"within {_shown(name)}")
            self._at += _whole_blocks(size)
        return member

    def _pass_map(self, header: _Header) -> None:
        """Skip the map of a GNU sparse member: each block says whether another follows."""
        more = header.block[482]
        while more:
            block = self._read(BLOCK)
            if len(block) < BLOCK:
                raise self._truncated("within a header")
            self._at += BLOCK
            more = block[504]

    def _require_end(self) -> None:
        tail = self._read(1 << 20)
        if tail.strip(b"\0"):
            raise UnusableError(
                f"is damaged, or several tars in one: at byte {self._place} it has neither a member nor the end; "
                "pack it anew"
            )

    def _damaged(self, what: str) -> UnusableError:
        return UnusableError(f"is damaged: at byte {self._place} it has {what}; copy it anew")

    def _truncated(self, where: str) -> UnusableError:
        return UnusableError(f"is truncated: it ends at byte {self._end - self._start}, {where}; copy it anew")


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _shown(name: bytes) -> str:
    return name[:200].decode(errors="surrogateescape")


def _number(field: bytes) -> int | None:
    """Read octal digits or, if the first bit is set, a number in two's complement. None if it is neither."""
    if field[0] in (0o200, 0o377):
        return int.from_bytes(field[1:], "big") - ((1 << 8 * (len(field) - 1)) if field[0] == 0o377 else 0)
    digits = _text(field).strip(b" ")
    if not digits:
        return 0
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else None


def _is_right(block: bytes) -> bool:
    """True if the checksum is the sum of the bytes, with its own field as spaces. Some writers add signed bytes."""
    told = _number(block[148:156])
    others = block[:148] + block[156:]
    right = sum(others) + 8 * ord(" ")
    return told == right or told == right - 256 * sum(byte > 127 for byte in others)
