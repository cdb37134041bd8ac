"""Standard output and error that cannot end a run when they are closed, full or no longer read.

`make_safe` replaces them by streams whose writes never raise, so code that prints, logs or draws progress needs no
care. This module imports Python's own library alone: it runs before torch is imported.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import select
import sys
from typing import TYPE_CHECKING

from pipelines.common.text import one_line

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Descriptor(io.FileIO):
    """An open file descriptor. `error` is the reason of the last failed write."""

    error: OSError | None = None
    warns = False

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)

    def write(self, data: ReadableBuffer) -> int:
        """Return the number of bytes written, or dropped after an error. Each write tries again: space may be freed."""
        try:
            while (written := super().write(data)) is None:  # Another process that shares it has made it non-blocking.
                select.select([], [self], [])
        except OSError as error:
            first, self.error = self.error is None, error
            if first and self.warns:
                _warn(error)
            return memoryview(data).nbytes
        return int(written)


_stdout: _Descriptor | None = None


def make_safe() -> None:
    """Open descriptors 0 to 2 and make printing raise no OSError. Called at the start of a program."""
    global _stdout
    _occupy()
    _stdout = _Descriptor(1)
    sys.stdout = _text(_stdout, sys.stdout)
    sys.stderr = _text(_Descriptor(2), sys.stderr)


class LogLine(logging.Formatter):
    """A format of one line: bare below warnings, else with `warning: ` or `error: ` in front."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the message on one line, whatever the names in it hold."""
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line with its level in front, from warnings on."""
        line = super().format(record)
        return f"{record.levelname.lower()}: {line}" if record.levelno >= logging.WARNING else line


def log_in_lines(level: int) -> None:
    """Let `logging` write to standard error, each message on a line of its own."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogLine())
    logging.basicConfig(level=level, handlers=[handler])


def go_on_without() -> None:
    """Treat lost output as one warning instead of an error, now or when it is lost."""
    if _stdout is None:
        return
    _stdout.warns = True
    if _stdout.error is not None:
        _warn(_stdout.error)


def lost_output() -> str | None:
    """Return why printed output is incomplete, for a program that must deliver all of it; None if it is complete.

    A reader that closes the pipe early, as in `... | head`, is no error.
    """
    if _stdout is None or _stdout.warns:
        return None
    sys.stdout.flush()
    if _stdout.error is None or _stdout.error.errno == errno.EPIPE:
        return None
    return f"the output cannot be written ({_stdout.error.strerror})"


def _warn(error: OSError) -> None:
    line = f"warning: standard output cannot be written ({error.strerror}); training continues without it"
    print(line, file=sys.stderr, flush=True)


def _occupy() -> None:
    """Open closed descriptors among 0 to 2. Otherwise the next opened file would get their number.

    They are opened read-only, so writes fail as on a closed descriptor, in child processes too.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            other = os.open(os.devnull, os.O_RDONLY)
            if other != number:
                os.dup2(other, number)
                os.close(other)
            os.set_inheritable(number, True)


def _text(descriptor: _Descriptor, before: object) -> io.TextIOWrapper:
    """Return a text stream with the settings of the previous one. `before` is None if that was closed."""
    if isinstance(before, io.TextIOWrapper):
        with contextlib.suppress(OSError):
            before.flush()
        # Strict, a name of a file or a class could end the program.
        errors = "backslashreplace" if before.errors == "strict" else before.errors
        encoding, lines = before.encoding, before.line_buffering or before.write_through
    else:
        encoding, errors, lines = "utf-8", "backslashreplace", True
    return io.TextIOWrapper(io.BufferedWriter(descriptor), encoding=encoding, errors=errors, line_buffering=lines)
