"""The folder to fill: held by one process at a time, marked while it is incomplete, its files written whole."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident

from pipelines.common.errors import UserError
from pipelines.common.files import naming
from pipelines.sources.parts import UNFINISHED

log = logging.getLogger(__name__)
_LOCK = "lock"


@dataclass(frozen=True)
class Place:
    """A folder that this process holds."""

    out: Path
    drafts: Path
    """Folder of files that are being written: on the same disk, so that a rename ends the writing."""

    def folder(self, *names: str) -> Path:
        """Make a folder within, and return its path. Raises UserError for a link: it may lead out."""
        path = self.out
        for name in names:
            path /= name
            make_folder(path)
        return path

    def write(self, target: Path, parts: Iterable[bytes | memoryview]) -> None:
        """Write a file whole, or leave what was there. Raises UserError if it cannot be written."""
        draft = self.drafts / str(get_ident())
        try:
            with naming(draft), open(draft, "wb") as file:
                file.writelines(parts)
            os.replace(draft, target)
        except OSError as error:
            if str(error.filename) != str(draft):
                raise  # An error of reading what is to be written.
            raise UserError(
                f"{target} cannot be written ({error.strerror}); make room for it, and give the command again"
            ) from None


def make_folder(path: Path) -> None:
    """Make a folder unless it is there. Raises UserError for what is no folder, and for a link."""
    try:
        path.mkdir(exist_ok=True)
        mode = os.lstat(path).st_mode
    except FileExistsError:
        mode = 0
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror}); give another --out") from None
    if not stat.S_ISDIR(mode):
        raise UserError(f"{path} is a link or a file, where a folder is to be filled; remove it, or give another --out")


@contextmanager
def held(out: Path) -> Iterator[Place]:
    """Hold the folder `out`. It stays marked as unfinished unless the block ends without an error.

    Raises UserError if another process holds it, or it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out is {out}, which cannot be made ({error.strerror}); give another") from None
    drafts = out / UNFINISHED
    make_folder(drafts)
    with _locked(drafts / _LOCK, out):
        for left in drafts.iterdir():  # A process that was killed leaves some.
            if left.name != _LOCK:
                left.unlink()
        yield Place(out, drafts)
        _remove(drafts)
    # On NFS an open file that is removed stays in its folder under another name: the lock, until now. A folder that is
    # not empty is another process's already.
    with suppress(FileNotFoundError):
        _remove(drafts, os.rmdir)
    if drafts.exists():
        log.warning("%s is still there: remove it, unless another process fills the folder", drafts)


def _remove(folder: Path, by: Callable[[Path], object] = shutil.rmtree) -> None:
    """Remove a folder unless there is something in it that cannot be removed yet."""
    try:
        by(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
            raise


@contextmanager
def _locked(path: Path, out: Path) -> Iterator[None]:
    """Hold a lock. The system frees it when the process ends, however it ends."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"--out is {out}, which cannot be written to ({error.strerror}); give another") from None
    try:
        _lock(descriptor, out)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--out is {out}, which another process fills now; wait for it, or give another") from None
    except OSError as error:  # Some network file systems have no locks.
        log.warning("%s cannot be locked (%s); let no other process fill it meanwhile", out, error.strerror)
