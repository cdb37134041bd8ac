"""Room on a disk, asked for before hours of writing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipelines.common.errors import UserError


def require_room(out: Path, needed: int, parts: Sequence[str] = ()) -> int:
    """Return the free bytes on the disk of `out`.

    Raises UserError if `needed` bytes, less those that the folders `parts` in it have, clearly do not fit.
    """
    above = next(path for path in (out, *out.parents, Path()) if os.path.isdir(path))
    free = shutil.disk_usage(above).free
    if needed > free and (lacking := needed - sum(bytes_in(out / part) for part in parts)) > free:
        raise UserError(
            f"--out is {out}, whose disk has {in_gigabytes(free)} free; {in_gigabytes(lacking)} are needed: make room, "
            "or give another"
        )
    return free


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files in a folder, without links."""
    places = ((above, name) for above, _, names in os.walk(folder) for name in names)
    return sum(os.lstat(os.path.join(above, name)).st_size for above, name in places)


def in_gigabytes(size: int) -> str:
    """Return a size for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{-(-size // 10**6):,} MB"
