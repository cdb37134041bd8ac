"""A log file that outlives outages of its storage."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections import deque
from pathlib import Path

from dynsparse import files
from pipelines.common.files import require_regular

_MOST_WAITING = 256 << 20
_PIECE = 1 << 20


class Appender:
    """Appends records to a file, and keeps in memory what the storage does not take, in order and to the byte.

    The file is opened for each `write`, and made if it is missing. So a file on storage that was away, or in a folder
    that was renamed, is found when it is back. Only a regular file at `path` itself is opened; anything else there is
    moved aside.
    """

    def __init__(self, path: Path, *, lines: bool = True, header: bytes = b"", most: int = _MOST_WAITING) -> None:
        """Append to `path`. `most` is how many bytes may wait; records beyond are lost. `header` begins an empty file.

        `lines`: half a line at the end of the file, as a kill leaves it, is ended before another is appended.
        """
        self.path = path
        self.lost = 0
        """Number of records for which there was no memory."""
        self._lines = lines
        self._header = header
        self._most = most
        self._records: deque[bytes] = deque()
        self._bytes = 0
        self._taken = 0
        """Bytes of the first record that are in the file already."""

    @property
    def pending(self) -> bool:
        """Whether a record waits, or was lost."""
        return bool(self._records or self.lost)

    def add(self, record: bytes) -> None:
        """Keep a record until `write`."""
        if self._bytes + len(record) > self._most:
            self.lost += 1
            return
        self._records.append(record)
        self._bytes += len(record)

    def write(self) -> None:
        """Write the records that wait. Raises OSError if some still do, or were lost."""
        if self._records:
            descriptor = self._open()
            try:
                self._find_place(descriptor)
                while self._records:
                    self._drop(os.write(descriptor, self._next_piece()))
            finally:
                os.close(descriptor)
        if self.lost:
            raise OSError(errno.ENOBUFS, f"lost {self.lost:,} records, for which there was no memory", str(self.path))

    def sync(self) -> None:
        """Flush the file to the disk itself, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self.path, os.O_RDONLY | files.SAFE)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _open(self) -> int:
        files.make_way(self.path)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | files.SAFE, 0o644)
        except PermissionError:
            if not os.path.lexists(self.path):
                raise
            files.set_aside(self.path, "may not be written")
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | files.SAFE, 0o644)
        try:
            require_regular(self.path, os.fstat(descriptor), None)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _find_place(self, descriptor: int) -> None:
        """Continue the first record if the file ends with its beginning; else begin it anew, on a line of its own."""
        size = os.fstat(descriptor).st_size
        begun = self._records[0][: self._taken]
        if begun and size >= len(begun) and os.pread(descriptor, len(begun), size - len(begun)) == begun:
            return
        self._taken = 0
        if size == 0 and self._header and self._records[0] is not self._header:
            self._records.appendleft(self._header)
            self._bytes += len(self._header)
        if self._lines and size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")

    def _next_piece(self) -> bytes:
        """Return up to 1 MiB of the records that wait, or the rest of a longer one."""
        piece = [self._records[0][self._taken :]]
        size = len(piece[0])
        for record in itertools.islice(self._records, 1, None):
            if (size := size + len(record)) > _PIECE:
                break
            piece.append(record)
        return b"".join(piece)

    def _drop(self, count: int) -> None:
        """Forget `count` bytes that the file has taken."""
        if count == 0:
            raise OSError(errno.EIO, "takes nothing", os.fspath(self.path))
        count += self._taken
        while self._records and count >= len(self._records[0]):
            size = len(self._records.popleft())
            count -= size
            self._bytes -= size
        self._taken = count
