"""Folders that may not be entered."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

NOBODY = 65534


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder in another's: it is there, and `as_another` may not look it up. Not in tmp_path, which is closed too."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    (inner := top / "closed" / "in").mkdir(parents=True)
    (top / "closed").chmod(0)
    yield inner
    (top / "closed").chmod(0o700)
    shutil.rmtree(top)


@pytest.fixture
def as_another() -> Callable[[], AbstractContextManager[None]]:
    """Root may enter all: within the block this process is nobody instead."""

    @contextmanager
    def lowered() -> Iterator[None]:
        before = os.geteuid()
        if before == 0:
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(before)

    return lowered
