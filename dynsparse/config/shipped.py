"""Configs, schedules and lists of experiments that ship with dynsparse."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

_INSTALLED, _CLONED = Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _CLONED
"""Inside the package where it was installed, beside it in a clone."""


def found(path: str | Path, kind: str = "") -> Path:
    """Return the path itself, or the file that ships where nothing is there.

    `configs/digits_dsr.yaml` is found from any folder, and says so. `kind` is a folder of configs/ in which a bare name
    is looked for as well.
    """
    given = Path(path)
    if os.path.exists(given):  # Unlike Path.exists, no error for a folder that may not be read: the reader tells of it.
        return given
    if kind and os.path.exists(named := FOLDER / kind / given):
        return named
    if given.parts[:1] == ("configs",) and os.path.exists(shipped := FOLDER / given.relative_to("configs")):
        log.info("%s: not here; the one that ships with dynsparse is used, %s", given, shipped)
        return shipped
    return given
