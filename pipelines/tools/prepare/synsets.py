"""The classes in the devkit's meta.mat, read in a process of its own.

A file of MATLAB's may declare any size and nest without end: SciPy's reader would fill the memory, or crash. There it
ends a process with bounded memory, and no more.
"""

from __future__ import annotations

import io
import re
import resource
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.common.processes import clean_processes
from pipelines.sources.tar_headers import UnusableError

MOST_MEMORY = 1 << 30
"""Bytes that reading may take."""
LARGEST_ID = 1000
"""Larger numbers are those of groups of classes."""
WNID = re.compile(r"n\d{8}", re.ASCII)


@dataclass(frozen=True)
class Synset:
    """A class: its number in the devkit, its name in WordNet, and how many training images it has."""

    number: int
    wnid: str
    images: int
    """0 if the devkit does not say."""


def read_synsets(content: bytes) -> list[Synset]:
    """Return the classes, sorted by number. Raises UnusableError."""
    ignored = signal.SIGINT, signal.SIG_IGN  # The process that starts it answers interrupts.
    with ProcessPoolExecutor(1, clean_processes(), initializer=signal.signal, initargs=ignored) as pool:
        try:
            rows: list[tuple[int, str, int]] | str = pool.submit(rows_of, content).result()
        except BrokenProcessPool:
            rows = "it ends the process that reads it"
    if isinstance(rows, str):
        raise UnusableError(f"has a data/meta.mat that cannot be used ({rows}); fetch it anew")
    return [Synset(*row) for row in rows]


def rows_of(content: bytes) -> list[tuple[int, str, int]] | str:
    """Return number, WNID and images of each class, or why the file cannot be used."""
    from scipy.io import loadmat  # Only here: it takes a second, and only this process needs it.

    _bound_memory()
    try:
        found = loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])
        rows = sorted(_row(each) for each in found["synsets"].reshape(-1))
    except MemoryError:
        return f"it takes more than {MOST_MEMORY >> 20:,} MiB of memory"
    except Exception as error:  # noqa: BLE001 - a damaged file makes SciPy raise anything
        return f"{type(error).__name__}: {str(error)[:200]}"
    rows = [row for row in rows if row[0] <= LARGEST_ID]
    return _fault(rows) or rows


def _row(synset: Any) -> tuple[int, str, int]:
    images = int(synset["num_train_images"]) if "num_train_images" in synset.dtype.names else 0
    return int(synset["ILSVRC2012_ID"]), str(synset["WNID"]), images


def _fault(rows: list[tuple[int, str, int]]) -> str | None:
    if odd := next((row for row in rows if row[0] < 1 or not WNID.fullmatch(row[1])), None):
        return f"it has the class {odd[0]} with the WNID {odd[1][:40]!r}"
    if not rows or len({row[0] for row in rows}) < len(rows) or len({row[1] for row in rows}) < len(rows):
        return "it has no classes, or one twice"
    return None


def _bound_memory() -> None:
    """Bound the memory of this process, where the system can."""
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
