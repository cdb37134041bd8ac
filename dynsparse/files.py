"""Files that anybody may have put there, opened with care; files of ours, written in one step.

What is read is a regular file of bounded size: a pipe would wait for ever, a
device never end, a file of many gigabytes fill the memory. What is written is
made under a name of its own, never through a link that somebody has placed.
What is appended waits in memory while the storage does not take it. All errors
are OSError, with words for `strerror`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import secrets
import stat
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.common.files import KINDS, open_regular, read_bytes, read_text, require_regular

__all__ = [
    "Appender",
    "is_folder",
    "json_object",
    "left_by_writers",
    "lines",
    "make_way",
    "may_pass",
    "open_regular",
    "read_bytes",
    "read_text",
    "remove",
    "set_aside",
    "whole",
    "write_whole",
]

log = logging.getLogger(__name__)

LONGEST_LINE = 16 << 20
_MOST_WAITING = 256 << 20
_PIECE = 1 << 20
_PASSING = {
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENXIO,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EREMOTEIO,
}
_SAFE = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW


def json_object(content: bytes | str) -> dict[str, Any]:
    """The JSON object that `content` is. ValueError for anything else, however deep it nests."""
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError("nests too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")
    return found


def lines(path: str | os.PathLike[str], longest: int = LONGEST_LINE, start: int = 0) -> Iterator[bytes]:
    """The lines of a file of any size from the byte `start`, with their ends. A longer one comes in pieces of `longest`
    bytes."""
    with open_regular(path) as file:
        file.seek(start)
        while line := file.readline(longest):
            yield line


@contextlib.contextmanager
def whole(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` when the block has ended; nothing changes if it raises.

    Flushed to the disk, then renamed. `before` is called at the last moment, and may raise.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        before()
        if is_folder(path):
            set_aside(path, "is a folder")
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    _flush_folder(path.parent)


def write_whole(path: Path, content: bytes, before: Callable[[], None] = lambda: None) -> None:
    """Give `path` this content in one step, as `whole` does: a reader, or a start after a kill, finds old or new."""
    with whole(path, before) as file:
        file.write(content)


def left_by_writers(path: Path) -> Iterator[Path]:
    """What processes that were killed while they wrote `path` have left beside it."""
    return path.parent.glob(f"{path.name}.*.partial")


def is_folder(path: Path) -> bool:
    """Whether a folder stands there, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def make_way(path: Path) -> None:
    """Move aside what stands at `path` and is no regular file, with a warning: a folder, a pipe, a link (itself)."""
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if kind != stat.S_IFREG:
        set_aside(path, f"is {KINDS.get(kind, 'no regular file')}")


def set_aside(path: Path, because: str) -> Path:
    """Rename `path` to a free name beside it, with a warning. Returns the name."""
    names = (path.with_name(f"{path.name}.aside{number or ''}") for number in itertools.count())
    name = next(name for name in names if not os.path.lexists(name))
    os.rename(path, name)
    log.warning("%s %s; moved to %s", path, because, name.name)
    return name


class Appender:
    """Appends records to a file, and keeps in memory what the storage does not take: in order, to the byte.

    The file is opened for each `write`, and made if it is not there. So one on
    storage that was gone, or in a folder that was renamed, is found when it is
    back. A file is opened that is regular and stands at `path` itself: what
    else stands there is moved aside.
    """

    def __init__(self, path: Path, *, lines: bool = True, header: bytes = b"", most: int = _MOST_WAITING) -> None:
        """`lines`: half a line at the end of the file, as a kill leaves it, is ended before another is appended.
        `header`: what an empty file begins with. `most`: how many bytes may wait; records beyond are lost."""
        self.path = path
        self.lost = 0
        """Records for which there was no memory."""
        self._lines = lines
        self._header = header
        self._most = most
        self._records: deque[bytes] = deque()
        self._bytes = 0
        self._taken = 0
        """Bytes of the first record that are in the file."""

    @property
    def pending(self) -> bool:
        """Whether something waits, or was lost."""
        return bool(self._records or self.lost)

    def add(self, record: bytes) -> None:
        """Remember a record. `write` writes it."""
        if self._bytes + len(record) > self._most:
            self.lost += 1
            return
        self._records.append(record)
        self._bytes += len(record)

    def write(self) -> None:
        """Write what waits. OSError if some of it still does, or was lost."""
        if self._records:
            descriptor = self._open()
            try:
                self._find_place(descriptor)
                while self._records:
                    self._drop(os.write(descriptor, self._next_piece()))
            finally:
                os.close(descriptor)
        if self.lost:
            raise OSError(errno.ENOBUFS, f"lost {self.lost:,} records, for which there was no memory", str(self.path))

    def sync(self) -> None:
        """Flush what was written to the disk itself, if the file is there."""
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self.path, os.O_RDONLY | _SAFE)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _open(self) -> int:
        make_way(self.path)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _SAFE, 0o644)
        except PermissionError:
            if not os.path.lexists(self.path):
                raise
            set_aside(self.path, "may not be written")
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _SAFE, 0o644)
        try:
            require_regular(self.path, os.fstat(descriptor), None)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _find_place(self, descriptor: int) -> None:
        """Go on within the first record if its beginning ends the file; else let it begin anew, on its own line."""
        size = os.fstat(descriptor).st_size
        begun = self._records[0][: self._taken]
        if begun and size >= len(begun) and os.pread(descriptor, len(begun), size - len(begun)) == begun:
            return
        self._taken = 0
        if size == 0 and self._header and self._records[0] is not self._header:
            self._records.appendleft(self._header)
            self._bytes += len(self._header)
        if self._lines and size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")

    def _next_piece(self) -> bytes:
        """Of what waits, up to 1 MiB, or the rest of a longer record."""
        piece = [self._records[0][self._taken :]]
        size = len(piece[0])
        for record in itertools.islice(self._records, 1, None):
            if (size := size + len(record)) > _PIECE:
                break
            piece.append(record)
        return b"".join(piece)

    def _drop(self, count: int) -> None:
        """Forget what the file has taken: `count` bytes from where it was."""
        if count == 0:
            raise OSError(errno.EIO, "takes nothing", os.fspath(self.path))
        count += self._taken
        while self._records and count >= len(self._records[0]):
            size = len(self._records.popleft())
            count -= size
            self._bytes -= size
        self._taken = count


def remove(path: Path) -> None:
    """Remove what stands there, if anything: a file, a link and not its target, an empty folder."""
    try:
        path.unlink()
    except FileNotFoundError:
        pass
    except OSError:
        if not is_folder(path):
            raise
        path.rmdir()


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system allows to ask for it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def may_pass(error: OSError) -> bool:
    """Whether the storage may be full or away for the moment, rather than the file be of no use."""
    return error.errno in _PASSING
