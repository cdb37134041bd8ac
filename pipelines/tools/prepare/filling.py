"""Images of a tar, written as files by several threads.

Threads, not processes: reading and writing wait for the disk, and Python's lock is free meanwhile.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import BinaryIO

from tqdm import tqdm

from pipelines.common.errors import UserError
from pipelines.images.encoded import MOST_BYTES
from pipelines.images.headers import UNKNOWN, format_of
from pipelines.images.image_bytes import NoImageError, read_range
from pipelines.sources.tar_headers import Member
from pipelines.tools.prepare.packed import shown
from pipelines.tools.prepare.place import Place
from pipelines.tools.prepare.room import in_gigabytes

STEPS = 20
"""Lines of progress without a terminal."""


class Progress:
    """Bytes done: a bar in a terminal, else some lines. Any thread may advance it."""

    def __init__(self, total: int) -> None:
        self._total = max(1, total)
        self._done = 0
        self._lock = Lock()
        in_terminal = sys.stderr.isatty()
        self._bar = tqdm(desc="prepare", total=total, unit="B", unit_scale=True) if in_terminal else None

    def advance(self, size: int) -> None:
        """Count `size` bytes more."""
        with self._lock:
            before, self._done = self._done, self._done + size
            if self._bar is not None:
                self._bar.update(size)
            elif self._done * STEPS // self._total > before * STEPS // self._total:
                said = f"prepare: {in_gigabytes(self._done)} of {in_gigabytes(self._total)}"
                print(said, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()


@dataclass(frozen=True)
class Filler:
    """A writer of images into a place, until it is told to stop."""

    place: Place
    progress: Progress
    stop: Event

    def fill(self, file: BinaryIO, archive: Path, images: Iterable[tuple[Member, Path]]) -> tuple[int, int]:
        """Write the members that are not there yet to their paths. Return how many there are, and their bytes.

        Raises UserError for a member that is no image.
        """
        count = size = 0
        for member, target in images:
            if self.stop.is_set():
                break
            if not _is_there(target, member.size):
                self.place.write(target, [_content(file, archive, member)])
            self.progress.advance(member.size)
            count += 1
            size += member.size
        return count, size


def _is_there(target: Path, size: int) -> bool:
    """Return True if the image was written before. Files are written whole, so its size is proof."""
    with suppress(FileNotFoundError):
        found = os.lstat(target)
        return stat.S_ISREG(found.st_mode) and found.st_size == size
    return False


def _content(file: BinaryIO, archive: Path, member: Member) -> memoryview:
    """Return the content of an image. ImageNet has a PNG or two that are named JPEG: any image is taken."""
    try:
        content = read_range(file.fileno(), member.offset, member.size, MOST_BYTES)
    except NoImageError:
        reason = UNKNOWN
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    else:
        if format_of(content) is not None and len(content) == member.size:
            return content.data
        reason = UNKNOWN
    raise UserError(f"{archive}: {shown(member.name)} {reason}; copy the archive anew")


def run(tasks: Sequence[Callable[[], None]], workers: int, stop: Event) -> None:
    """Run the tasks in threads. An error, and an interrupt too, stops them all."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done in as_completed([pool.submit(task) for task in tasks]):
                done.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
