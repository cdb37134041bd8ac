"""A cache of open files, for sources that read parts of large files in any order."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache

from pipelines.common.files import open_descriptor

DESCRIPTORS = 256
"""Files of one source that a process keeps open. Often it may have 1,024 files open in all."""


class Descriptor:
    """An open file that is closed with its last reference: a cache can drop it while a reader uses it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


def _open(path: str) -> Descriptor:
    return Descriptor(open_descriptor(path))


class Descriptors:
    """A cache of the latest `DESCRIPTORS` open files. lru_cache has no lock that a fork could leave locked."""

    def __init__(self) -> None:
        cached = lru_cache(maxsize=DESCRIPTORS)(_open)
        self.get: Callable[[str], Descriptor] = cached
        self.clear: Callable[[], None] = cached.cache_clear

    def __reduce__(self) -> tuple[type[Descriptors], tuple[()]]:
        return Descriptors, ()  # Numbers of descriptors mean nothing to another process.
