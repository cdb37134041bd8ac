"""Names of checkpoints changed in one step each: second names, and files set aside."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from dynsparse import files
from dynsparse.errors import StorageError, UserError
from dynsparse.training.checkpoint.format import State, read
from dynsparse.training.run import names

log = logging.getLogger(__name__)


def remove_partial(folder: Path) -> None:
    """Remove what a process that was killed during a save has left. What cannot be removed does no harm."""
    for path in folder.glob(names.PARTIAL):
        with contextlib.suppress(OSError):
            files.remove(path)


def link(source: Path, name: Path, before: Callable[[], None] = lambda: None) -> None:
    """Make `name` another name of `source`, in one step; a copy where the file system has no hard links.

    `before` is called before each change of the disk, and may raise.
    """
    before()
    partial = name.with_name(f"{name.name}.{secrets.token_hex(4)}.partial")
    try:
        os.link(source, partial)
    except OSError:
        with files.whole(name, before) as copy, files.open_regular(source) as original:
            shutil.copyfileobj(original, copy)
        return
    try:
        before()
        os.replace(partial, name)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()  # It is still there where `name` was the same file already.


def set_aside_after(
    folder: Path, step: int, read: Callable[[Path], State] = read, before: Callable[[], None] = lambda: None
) -> None:
    """Rename the checkpoints of later steps to `*.stale`: a run that resumes from `step` has another history.

    Left under their names they would pass for its newest and best. No valid file is deleted.
    `before` is called before each is renamed, and may raise.
    """
    remove_partial(folder)
    for path in folder.glob(names.STEPS):
        if (names.step_in(path) or 0) > step:
            _set_aside(path, before)
    for path in (folder / names.BEST, folder / names.LATEST):
        # The latest is another name of a step's file, unless that was removed.
        if path.is_file() and (path.name == names.BEST or path.stat().st_nlink == 1) and _is_after(path, step, read):
            _set_aside(path, before)


def _is_after(path: Path, step: int, read: Callable[[Path], State]) -> bool:
    """Tell whether a checkpoint is of a later step, or damaged. Raises StorageError where it may be neither."""
    try:
        return bool(read(path)["progress"]["step"] > step)
    except StorageError:
        raise
    except UserError as error:
        log.warning("%s", error)
        return True


def _set_aside(path: Path, before: Callable[[], None]) -> None:
    free = (path.with_suffix(f".pt.stale{number or ''}") for number in itertools.count())
    name = next(name for name in free if not name.exists())
    before()
    os.replace(path, name)
