"""Acts on the files of a lock, each safe while others act on them too."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from dynsparse import files
from dynsparse.errors import StorageError, UserError
from dynsparse.training.run import names

_MOST_BYTES = 1 << 16


def content_of(path: Path) -> bytes | None:
    """Read a small file anew, past any cache of a network file system; None if there is none.

    A link, a pipe or a device in its place is a file that says nothing.
    """
    try:
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder", os.fspath(path))
        if not stat.S_ISREG(status.st_mode):
            return b"no file"
        with files.open_regular(path) as file:
            return file.read(_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_same(path: Path, file: int) -> bool:
    """Tell whether what stands at `path` is the open file."""
    try:
        there, ours = os.lstat(path), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def take_away(path: Path, is_meant: Callable[[Path], bool]) -> bool:
    """Remove the lock at `path`. False, and it stays, if it is not the one that is meant.

    Another may have come in its place since it was looked at. So it is moved aside, looked at there, and put back if
    it is another's.
    """
    aside = path.with_name(names.claim(secrets.token_hex(8)))
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    meant = is_meant(aside)
    if not meant:
        with contextlib.suppress(OSError):  # Where there are no hard links its holder makes it anew.
            os.link(aside, path, follow_symlinks=False)
    files.remove(aside)
    return meant


@contextlib.contextmanager
def in_words(folder: Path, what: str) -> Iterator[None]:
    """Raise UserError for what the system says. `what` is what cannot be done with the folder: "written"."""
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder}: not a folder; set name= or runs=") from None
    except OSError as error:
        if isinstance(error, IsADirectoryError) or error.errno == errno.ENOTEMPTY:
            raise UserError(f"{error.filename}: is a folder; remove it, or set name=") from None
        kind = StorageError if files.may_pass(error) else UserError
        raise kind(f"{folder}: cannot be {what} ({error.strerror}); set runs= to a folder that can") from None
