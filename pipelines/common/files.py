"""Untrusted files, opened with care: regular files of bounded size, and nothing else.

Reading a pipe could wait without end, a device never ends, and a file of many gigabytes fills the memory. All errors
are OSError, with an explanation in `strerror`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

SMALL = 64 << 20
"""Bytes. Configs, summaries, lists and locks are smaller."""
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}

Path = str | bytes | os.PathLike[str]


def open_descriptor(path: Path, most: int | None = None) -> int:
    """Open a file for reading; the caller closes it.

    Raises OSError unless it is a regular file of at most `most` bytes.
    """
    require_regular(path, os.stat(path), most)  # Before it is opened: opening a device may have an effect.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        require_regular(path, os.fstat(descriptor), most)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_regular(path: Path, most: int | None = None) -> BinaryIO:
    """Open a file for reading in binary. Raises OSError as `open_descriptor`."""
    return os.fdopen(open_descriptor(path, most), "rb")


def read_bytes(path: Path, most: int = SMALL) -> bytes:
    """Return the whole content. Raises OSError as `open_descriptor`."""
    with open_regular(path, most) as file:
        content = file.read(most + 1) or b""  # None: nothing to read at the moment.
        if len(content) > most:  # Files of the kernel have no known size; any file may have grown.
            raise _too_large(path, f"more than {most:,} bytes")
        return content


def read_text(path: Path, most: int = SMALL) -> str:
    """Return the whole content as UTF-8, without a byte order mark.

    Raises UnicodeDecodeError, a ValueError, or OSError as `open_descriptor`.
    """
    return read_bytes(path, most).decode("utf-8-sig")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an OSError that names none, as those of reading and writing an open file do."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def require_regular(path: Path, status: os.stat_result, most: int | None) -> None:
    """Raise OSError unless `status` is that of a regular file of at most `most` bytes."""
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, "is a folder", os.fsdecode(path))
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"is {KINDS.get(kind, 'no regular file')}, not a file", os.fsdecode(path))
    if most is not None and status.st_size > most:
        raise _too_large(path, f"{status.st_size:,} bytes, more than {most:,}")


def _too_large(path: Path, size: str) -> OSError:
    return OSError(errno.EFBIG, f"has {size}", os.fsdecode(path))
