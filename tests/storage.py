"""Storage that several hosts share, and that can be full, read-only or away: a small file system of this machine.

The hosts (tests/hosts.py) must be started while it is mounted: each then has a view of its own on it, and it is that
view which a fault changes. This process goes on seeing what lies there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from tests.hosts import Host

_PAGE = 4096
_REFILL_SECONDS = 0.05


@functools.cache
def why_not() -> str | None:
    """Reason against such storage on this machine; None if it can have it."""
    with TemporaryDirectory() as name:
        try:
            with Storage(Path(name)):
                return None
        except OSError as error:
            return f"mounts are not allowed here ({error})"


class Storage:
    """A context of a file system of `size` (tmpfs's units) in `folder`."""

    def __init__(self, folder: Path, size: str = "16m") -> None:
        self.path = folder / "storage"
        """Path at which hosts see it."""
        self.inside = folder / "inside"
        """Path at which this process sees the same files, whatever happens to the hosts' view."""
        self._size = size
        self._stack = ExitStack()

    def __enter__(self) -> Storage:
        with ExitStack() as stack:
            for place in (self.inside, self.path):
                place.mkdir()
            _do("mount", "-t", "tmpfs", "-o", f"size={self._size}", "soak", self.inside)
            stack.callback(_do, "umount", "-l", self.inside)
            _do("mount", "--bind", self.inside, self.path)
            stack.callback(_do, "umount", "-l", self.path)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Fill the disk to the last page, for the time of the block. Space that the run frees is taken as well."""
        filler = self.inside / "filler"
        over = threading.Event()

        def fill() -> None:
            with filler.open("ab", buffering=0) as file:
                while not over.is_set():
                    try:
                        file.write(bytes(_PAGE))
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                        over.wait(_REFILL_SECONDS)

        thread = threading.Thread(target=fill, name="filler")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            filler.unlink()

    @contextlib.contextmanager
    def read_only(self, *hosts: Host) -> Iterator[None]:
        """Make the storage read-only for these hosts, for the time of the block.

        A read-only view of the same files is put over the old one: the kernel refuses to turn that while a file is
        open there for writing. So files that are open can still be written; all others cannot, and none be made.
        """
        for host in hosts:
            _do("mount", "-o", "bind,ro", self.inside, self.path, within=host)
        try:
            yield
        finally:
            for host in hosts:
                _do("umount", "-l", self.path, within=host)

    @contextlib.contextmanager
    def gone(self, *hosts: Host) -> Iterator[None]:
        """Take the storage from these hosts, for the time of the block: an empty folder is in its place."""
        for host in hosts:
            _do("umount", "-l", self.path, within=host)
        try:
            yield
        finally:
            for host in hosts:
                _do("mount", "--bind", self.inside, self.path, within=host)


def _do(*command: object, within: Host | None = None) -> None:
    prefix = [] if within is None else ["nsenter", f"--target={within.first}", "--pid", "--mount"]
    done = subprocess.run([*prefix, *map(str, command)], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(done.stderr.strip())
