"""Standard output and error that cannot end a run: closed, full, or read by nobody any more.

`make_safe` puts streams in their place whose writes never raise. Whatever prints, logs or draws progress needs no care.
Of Python's own library alone: this runs before torch is imported.
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
    """An open file descriptor. `error` is why a write to it failed last."""

    error: OSError | None = None
    warns = False

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)

    def write(self, data: ReadableBuffer) -> int:
        """The bytes written, or dropped after an error. Each write tries again: a disk may have space later."""
        try:
            while (written := super().write(data)) is None:  # Whoever shares it has made it non-blocking.
                select.select([], [self], [])
        except OSError as error:
            first, self.error = self.error is None, error
            if first and self.warns:
                _warn(error)
            return memoryview(data).nbytes
        return int(written)


_stdout: _Descriptor | None = None


def make_safe() -> None:
    """For the start of a program. From here on descriptors 0 to 2 are open, and printing raises no OSError."""
    global _stdout
    _occupy()
    _stdout = _Descriptor(1)
    sys.stdout = _text(_stdout, sys.stdout)
    sys.stderr = _text(_Descriptor(2), sys.stderr)


class LogLine(logging.Formatter):
    """A bare line for what goes on, `warning: ` before what goes wrong while it goes on."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """On one line, whatever the names in it hold."""
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return f"{record.levelname.lower()}: {line}" if record.levelno >= logging.WARNING else line


def log_in_lines(level: int) -> None:
    """Let `logging` write to standard error, each message on a line of its own."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogLine())
    logging.basicConfig(level=level, handlers=[handler])


def go_on_without() -> None:
    """A lost output is no error from here on: one warning, now or when it is lost."""
    if _stdout is None:
        return
    _stdout.warns = True
    if _stdout.error is not None:
        _warn(_stdout.error)


def lost_output() -> str | None:
    """Why what was printed is not all there, for a program whose output is what was asked for; None if it is.

    A reader that has seen enough, as `... | head`, is no loss.
    """
    if _stdout is None or _stdout.warns:
        return None
    sys.stdout.flush()
    if _stdout.error is None or _stdout.error.errno == errno.EPIPE:
        return None
    return f"the output cannot be written ({_stdout.error.strerror})"


def _warn(error: OSError) -> None:
    line = f"warning: standard output cannot be written ({error.strerror}); training goes on without it"
    print(line, file=sys.stderr, flush=True)


def _occupy() -> None:
    """Open those of the descriptors 0 to 2 that are closed, else the next file to be opened would get their number.

    Output goes to where nothing can be written: writes fail as they would if it were closed, in child processes too.
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
    """A text stream with the settings of the one before; None was one that is closed."""
    if isinstance(before, io.TextIOWrapper):
        with contextlib.suppress(OSError):
            before.flush()
        encoding, errors, lines = before.encoding, before.errors, before.line_buffering or before.write_through
    else:
        encoding, errors, lines = "utf-8", "backslashreplace", True
    return io.TextIOWrapper(io.BufferedWriter(descriptor), encoding=encoding, errors=errors, line_buffering=lines)
