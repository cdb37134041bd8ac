"""Archives, read with care: what is absent, damaged or not the official one is named in one line."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from gzip import GzipFile
from pathlib import Path
from typing import BinaryIO

from pipelines.common.errors import UserError
from pipelines.common.files import naming, open_regular
from pipelines.common.text import some_of
from pipelines.sources.official_files import md5_of
from pipelines.sources.tar_headers import Member, UnusableError

PART = 1 << 20
"""Bytes that are read at a time."""


def require_there(folder: Path, names: Iterable[str]) -> None:
    """Raise UserError that names the archives which the folder lacks."""
    if not os.path.isdir(folder):
        raise UserError(f"--archives is {folder}, which is no folder; give the folder that holds the archives")
    if missing := [name for name in names if not os.path.exists(folder / name)]:
        raise UserError(f"--archives: {folder} lacks {some_of(missing)}; put it there, under this name")


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn UnusableError for what is odd in an archive into UserError with its name."""
    try:
        yield
    except UnusableError as error:
        raise UserError(f"{path} {error}") from None


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open an archive. Raises UserError with its name if it cannot be opened, and for what is odd in it."""
    try:
        file = open_regular(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); put the archive there") from None
    with told(path), naming(path), file:
        yield file


def require_official(path: Path, md5: str) -> None:
    """Raise UserError unless the file has the official MD5."""
    if (found := _md5(path)) != md5:
        raise UserError(f"{path} is not the official file (its MD5 is {found}, not {md5}); fetch it anew")


def require_content(path: Path, content: Iterable[bytes], md5: str) -> None:
    """Raise UserError unless the content of a file, which may be packed in it, has the official MD5."""
    found = hashlib.md5(usedforsecurity=False)
    for part in content:
        found.update(part)
    if found.hexdigest() != md5:
        raise UserError(
            f"{path} does not hold the official content (its MD5 is {found.hexdigest()}, not {md5}); fetch it anew"
        )


def is_official(path: Path, md5: str) -> bool:
    """Return True for a file with the official MD5; False if it is not there."""
    return os.path.isfile(path) and not os.path.islink(path) and _md5(path) == md5


def _md5(path: Path) -> str:
    try:
        return md5_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); put the file there") from None


def decompressed(path: Path, most: int) -> Iterator[bytes]:
    """Yield the content of a gzip file. Raises UserError where it is damaged, or has more than `most` bytes."""
    with opened(path) as file:
        # Zeros behind the last member are no content, and may have no end: a file with a hole takes hours to read.
        if (stored := os.fstat(file.fileno()).st_size) > most:
            raise UnusableError(f"has {stored:,} bytes, more than {most:,}; fetch it anew")
        yield from _decompressed(file, most)


def _decompressed(file: BinaryIO, most: int) -> Iterator[bytes]:
    size = 0
    try:
        with GzipFile(fileobj=file) as content:
            while part := content.read(PART):
                if (size := size + len(part)) > most:
                    raise UnusableError(f"has more than {most:,} bytes when it is decompressed; fetch it anew")
                yield part
    except (EOFError, zlib.error):
        raise UnusableError("is truncated or damaged: it cannot be decompressed; fetch it anew") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise UnusableError("is no gzip file, or damaged; fetch it anew") from None


def content_of(file: BinaryIO, member: Member) -> bytes:
    """Return the content of a small member. Its size is in bounds, for the tar's is."""
    file.seek(member.offset)
    return file.read(member.size)


def shown(name: bytes) -> str:
    """Return a member's name for a message."""
    return name[:200].decode(errors="surrogateescape")
