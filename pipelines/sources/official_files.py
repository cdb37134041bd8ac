"""Checks of fetched files before others read them: regular, of bounded size, unchanged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.common.files import open_regular, require_regular

LARGEST = 256 << 20
"""Bytes. The largest file, the archive of CIFAR-10, has 170 MB."""


def require_files(folder: Path, names: Iterable[str], remedy: str) -> None:
    """Raise UserError unless all these files exist and are regular."""
    require_no_others(paths := [folder / name for name in names])
    if missing := [path.name for path in paths if not os.path.exists(path)]:
        raise UserError(
            f"data.path: {folder} lacks {', '.join(missing)}; {remedy}, or set data.download=true where there is "
            "internet"
        )


def require_no_others(paths: Iterable[Path]) -> None:
    """Raise UserError for paths that exist and are no regular files: opening a pipe would wait without end."""
    for path in paths:
        try:
            require_regular(path, os.stat(path), LARGEST)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None


def require_md5(path: Path, expected: str, what: str) -> None:
    """Raise UserError if the content is not the official one."""
    try:
        found = md5_of(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    if found != expected:
        raise UserError(
            f"data.path: {path} is not {what} (its MD5 is {found}, that of the official one {expected}); "
            "remove it and fetch it anew"
        )


def md5_of(path: Path) -> str:
    """Return the MD5 of a file's content. Raises OSError unless it is a regular file of bounded size."""
    found = hashlib.md5(usedforsecurity=False)
    with open_regular(path, LARGEST) as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"data.path: {path} cannot be read ({getattr(error, 'strerror', error)}); put the file there")
