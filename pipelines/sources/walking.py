"""Files in folders of images, found without opening any.

Hidden files and folders, and a few names that systems use, are ignored.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pipelines.common.errors import UserError

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
_SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS)
_SYSTEM = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"})
"""Folders that systems create in others: they hold no images, but thumbnails and such."""


def is_image(name: str) -> bool:
    """Return True for a file name of an image."""
    return name.lower().endswith(_SUFFIXES)


def files_of(part: Path, name: str, *, whole: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield the files of a class, in no order: the path in the class folder, and True if its name is an image's.

    A link to nothing that may be a folder is refused (UserError), or taken for a file unless the `whole` is needed.

    No file is opened or examined. Each folder is entered once, whatever links lead to it, and folders above it never:
    so links cannot make a circle, or multiply files.
    """
    top = part / name
    entered = {_identity(part.parent), _identity(part)}
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        folder = top / prefix
        if (identity := _identity(folder)) in entered:
            continue
        entered.add(identity)
        inner = []
        for entry in entries_of(folder):
            if is_image(entry.name):
                yield prefix + entry.name, True
            elif is_folder(folder, entry):
                inner.append(f"{prefix}{entry.name}/")
            else:
                if whole:
                    require_there(folder, entry)
                yield prefix + entry.name, False
        waiting += sorted(inner, reverse=True)  # Sorted: which of two links is entered must not depend on chance.


def entries_of(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, in no order, without those of the system."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if entry.name[0] != "." and entry.name not in _SYSTEM)
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from None


def is_folder(folder: Path, entry: os.DirEntry[str]) -> bool:
    """Return True for a folder or a link to one. Raises UserError if it cannot be read."""
    try:
        return entry.is_dir()
    except OSError as error:
        raise _unreadable(folder / entry.name, error) from None


def require_there(folder: Path, entry: os.DirEntry[str]) -> None:
    """Raise UserError for a link to nothing: it may be of a folder on a disk that is not mounted."""
    if entry.is_symlink() and not os.path.exists(folder / entry.name):
        raise UserError(
            f"data.path: {folder / entry.name} is a link to {os.readlink(folder / entry.name)}, which is not there: "
            "mount or mend that, or remove the link"
        )


def _identity(folder: Path) -> tuple[int, int]:
    try:
        found = os.stat(folder)
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from None
    return found.st_dev, found.st_ino


def _unreadable(folder: Path, error: Exception) -> UserError:
    absent = getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR)
    remedy = "give the folder that holds train/CLASS/*.jpg and val/CLASS/*.jpg" if absent else "make it readable"
    return UserError(f"data.path: {folder} cannot be read ({getattr(error, 'strerror', error)}); {remedy}")
