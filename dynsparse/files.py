"""Reading files that anybody may have placed, and writing our own in one step.

Only regular files of bounded size are read: a pipe would wait for ever, a device never end, a huge one fill memory.
A file is written under a new name, then renamed, and never through a link that somebody has placed. All errors are
OSError, with words for `strerror`.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.common.files import KINDS, open_regular, read_bytes, read_text

__all__ = [
    "SAFE",
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
SAFE = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW
"""Flags that open a file without waiting for it, and never through a link."""


def json_object(content: bytes | str) -> dict[str, Any]:
    """Return the JSON object in `content`. Raises ValueError for anything else, however deep it nests."""
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError("nests too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")
    return found


def lines(path: str | os.PathLike[str], longest: int = LONGEST_LINE, start: int = 0) -> Iterator[bytes]:
    """Yield the lines of a file of any size from the byte `start`, with their ends.

    A line of more than `longest` bytes comes in pieces of that size.
    """
    with open_regular(path) as file:
        file.seek(start)
        while line := file.readline(longest):
            yield line


@contextlib.contextmanager
def whole(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block has ended; nothing changes if the block raises.

    It is flushed to the disk, then renamed. `before` is called before anything is written and at the last moment, and
    may raise.
    """
    before()
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
    """Write `content` to `path` in one step, as `whole` does: a reader finds the old or the new, even after a kill."""
    with whole(path, before) as file:
        file.write(content)


def left_by_writers(path: Path) -> Iterator[Path]:
    """Yield the files left beside `path` by processes that were killed while they wrote it."""
    return path.parent.glob(f"{path.name}.*.partial")


def is_folder(path: Path) -> bool:
    """Return whether the path is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def make_way(path: Path) -> None:
    """Move aside, with a warning, anything at `path` that is no regular file: a folder, a pipe, a link (itself)."""
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if kind != stat.S_IFREG:
        set_aside(path, f"is {KINDS.get(kind, 'no regular file')}")


def set_aside(path: Path, because: str) -> Path:
    """Rename `path` to a free name beside it, with a warning, and return the name."""
    names = (path.with_name(f"{path.name}.aside{number or ''}") for number in itertools.count())
    name = next(name for name in names if not os.path.lexists(name))
    os.rename(path, name)
    log.warning("%s %s; moved to %s", path, because, name.name)
    return name


def remove(path: Path) -> None:
    """Remove a file, a link (not its target) or an empty folder, if there is one."""
    try:
        path.unlink()
    except FileNotFoundError:
        pass
    except OSError:
        if not is_folder(path):
            raise
        path.rmdir()


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system supports it."""
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
    """Return whether the error may pass, because the storage is full or away, rather than the file useless."""
    return error.errno in _PASSING
