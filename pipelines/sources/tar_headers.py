"""The headers of a tar file: what its members are called, and at which bytes they stand.

Python's `tarfile` reads headers of any length, follows a chain of them by recursion, and takes many a truncated or
damaged file for one that ends earlier. A hostile file takes all memory so. Here every header is bounded, the file is
read once from front to back, and its end is looked at.

Formats: ustar, pax, GNU, and the old ones. Sparse members are told, not read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
LONGEST_HEADER = 1 << 20
"""Bytes of a long name, or of pax records. Paths have at most 4,096 on Linux; other attributes may stand there too."""
MOST_HEADERS = 8
"""In front of one member. Writers need two or three."""
_REGULAR = frozenset(b"0\0" + b"7")
_WITHOUT_DATA = frozenset(b"123456")
"""Links, devices, folders, pipes: whatever their size says, no bytes follow."""
_SPARSE, _LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"SLKxg"
_EXTENSIONS = frozenset((_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, ord("X")))
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class UnusableError(Exception):
    """What is wrong with a file, and the remedy: the rest of a sentence that begins with its name."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file, folder, link or device in a tar."""

    name: bytes
    offset: int
    """Its first byte."""
    size: int
    kind: int
    """The type's letter in the header."""
    sparse: bool = False

    @property
    def is_regular(self) -> bool:
        """Whether the bytes at its offset are its content."""
        return self.kind in _REGULAR and not self.sparse

    @property
    def is_folder(self) -> bool:
        return self.kind == ord("5")


def members(file: BinaryIO) -> Iterator[Member]:
    """The members of a tar. Raises UnusableError unless the tar is whole, once the damage is reached."""
    return _Reader(file).members()


@dataclass(slots=True)
class _Header:
    """A block that says what follows it."""

    block: bytes
    kind: int
    size: int

    @property
    def name(self) -> bytes:
        name = _text(self.block[:100])
        # Where others have the first part of a long path, GNU's own format has times.
        prefix = _text(self.block[345:500]) if self.block[257:263] == b"ustar\0" else b""
        return prefix + b"/" + name if prefix else name


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._at = 0
        """The byte at which the next header is to be."""

    def members(self) -> Iterator[Member]:
        while (member := self._member()) is not None:
            yield member
        self._require_end()

    def _member(self) -> Member | None:
        """The next one, with what the headers in front of it say; None at the mark of the end."""
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
        self._file.seek(self._at)
        block = self._file.read(BLOCK)
        if len(block) < BLOCK:
            self._refuse_head("whole header" if block else "bytes")
            raise self._truncated("without the mark of a tar's end")
        if not block.strip(b"\0"):
            return None
        if not _is_right(block):
            self._refuse_head("right checksum")
            raise UnusableError(
                f"is damaged, or several tars in one: at byte {self._at} it has neither a member nor the end; "
                "pack it anew"
            )
        size = _number(block[124:136])
        if size is None:
            raise self._damaged("a size that is no number")
        self._at += BLOCK
        return _Header(block, block[156], size)

    def _refuse_head(self, lacking: str) -> None:
        """Raise UnusableError if this is the first header: the file is no tar at all."""
        if self._at == 0:
            head = os.pread(self._file.fileno(), 8, 0)
            for magic, name in _COMPRESSED.items():
                if head.startswith(magic):
                    raise UnusableError(f"is compressed ({name}), samples are read by their place; decompress it")
            raise UnusableError(f"is no tar, or damaged after byte 0 (no {lacking}); copy it anew")

    def _extension(self, header: _Header) -> bytes:
        if not 0 <= header.size <= LONGEST_HEADER:
            raise self._damaged(f"a header of {header.size:,} bytes, where a name or attributes stand")
        content = self._file.read(header.size)
        if len(content) < header.size:
            raise self._truncated("within a header")
        self._at += _whole_blocks(header.size)
        return content

    def _records(self, content: bytes) -> dict[bytes, bytes]:
        """The records of a pax header: LENGTH KEY=VALUE and a line end, the length that of the whole record."""
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
        if kind == 0 and header.name.endswith(b"/"):  # As folders were written once.
            kind = ord("5")
        sparse = kind == _SPARSE or any(key.startswith(b"GNU.sparse.") for key in records)
        if kind == _SPARSE:
            self._pass_map(header)
        member = Member(name.rstrip(b"/") if kind == ord("5") else name, self._at, size, kind, sparse)
        if kind not in _WITHOUT_DATA:
            if self._at + size > self._size:
                raise self._truncated(f"within {_shown(name)}")
            self._at += _whole_blocks(size)
        return member

    def _pass_map(self, header: _Header) -> None:
        """Where the parts of GNU's sparse members belong, in as many blocks as each says whether another follows."""
        more = header.block[482]
        while more:
            self._file.seek(self._at)
            block = self._file.read(BLOCK)
            if len(block) < BLOCK:
                raise self._truncated("within a header")
            self._at += BLOCK
            more = block[504]

    def _require_end(self) -> None:
        tail = os.pread(self._file.fileno(), 1 << 20, self._at)
        if tail.strip(b"\0"):
            raise UnusableError(
                f"is damaged, or several tars in one: at byte {self._at} it has neither a member nor the end; "
                "pack it anew"
            )

    def _damaged(self, what: str) -> UnusableError:
        return UnusableError(f"is damaged: at byte {self._at} it has {what}; copy it anew")

    def _truncated(self, where: str) -> UnusableError:
        return UnusableError(f"is truncated: it ends at byte {self._size}, {where}; copy it anew")


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _shown(name: bytes) -> str:
    return name[:200].decode(errors="surrogateescape")


def _number(field: bytes) -> int | None:
    """Octal digits, or where the first bit is set the bits of a number of two's complement. None if it is neither."""
    if field[0] in (0o200, 0o377):
        return int.from_bytes(field[1:], "big") - ((1 << 8 * (len(field) - 1)) if field[0] == 0o377 else 0)
    digits = _text(field).strip(b" ")
    if not digits:
        return 0
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else None


def _is_right(block: bytes) -> bool:
    """Whether the checksum is the sum of the bytes, its own field as spaces; some writers have taken them as signed."""
    told = _number(block[148:156])
    others = block[:148] + block[156:]
    right = sum(others) + 8 * ord(" ")
    return told == right or told == right - 256 * sum(byte > 127 for byte in others)
