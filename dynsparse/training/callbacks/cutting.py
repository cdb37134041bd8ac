"""Cut metrics.jsonl where a run resumes, and set its damaged lines aside."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from dynsparse import files
from dynsparse.appender import Appender
from dynsparse.training.callbacks.base import RunReport
from dynsparse.training.run import log_lines, names
from dynsparse.training.run.log_lines import Line
from dynsparse.training.run.log_records import is_of_kind_known, metrics_line

log = logging.getLogger(__name__)

_MOST_DAMAGED = 16 << 20
"""Bytes of damaged lines that are kept."""


def cut(path: Path, run: RunReport) -> None:
    """Keep the lines from before the point where the run resumes. OSError if that fails, with all as it was.

    Where they are the beginning of the file it is truncated, which takes no space on the disk and no time.
    """
    os.stat(path.parent)  # A folder that is gone for the moment is none without the file.
    for left in files.left_by_writers(path):
        with contextlib.suppress(OSError):
            left.unlink()
    content = _look(path, run)
    if content is None:
        return
    if content.damaged:
        _set_damaged_aside(path, content.damaged)
    if content.beginning is not None and _truncated(path, content.beginning):
        return
    if path.is_symlink():
        log.warning("%s is a link; a file takes its place, and what the link leads to stays as it is", path)
    with files.whole(path) as file:
        for line in log_lines.read(path, metrics_line):
            if _is_before(line, run):
                file.write(_ended(line))


@dataclass(frozen=True)
class _Content:
    """Content of the file, as far as the cut needs it."""

    damaged: log_lines.Damaged
    beginning: int | None
    """Bytes that hold the lines to be kept, and nothing else. None if those are not the file's beginning."""


def _look(path: Path, run: RunReport) -> _Content | None:
    """Read the file. None if there is none, or what stands there is no file and was moved aside."""
    if not path.is_file():  # Through a link too: nothing is written to its target.
        files.make_way(path)
        return None
    damaged, kept, skipped = log_lines.Damaged(), 0, 0
    in_order = True
    try:
        for line in log_lines.read(path, metrics_line):
            if _is_damaged(line):
                damaged.add(line.number)
            if _is_before(line, run):
                in_order &= skipped == 0 and line.content.endswith(b"\n")
                kept += len(line.content)
            else:
                skipped += len(line.content)
    except PermissionError:
        files.set_aside(path, "may not be read")
        return None
    return _Content(damaged, kept if in_order else None)


def _is_damaged(line: Line) -> bool:
    """Tell whether a line is damaged. Half a line at the end is not: a kill leaves it."""
    if line.record is None:
        return not line.unfinished
    return not is_of_kind_known(line.record)


def _is_before(line: Line, run: RunReport) -> bool:
    """Tell whether a line is of something before the point where the run resumes."""
    record = line.record
    if record is None or not is_of_kind_known(record):
        return False
    if record["kind"] == "shrink":
        return record["epoch"] in run.shrunk_before
    return bool(record["epoch"] < run.start_epoch if record["kind"] == "epoch" else record["step"] <= run.start_step)


def _ended(line: Line) -> bytes:
    return line.content.rstrip(b"\n") + b"\n"


def _set_damaged_aside(path: Path, damaged: log_lines.Damaged) -> None:
    """Append the damaged lines to a file beside, up to a size at which nobody reads it. Say so in a warning."""
    aside = path.with_name(names.damaged(path.name))
    files.make_way(aside)
    space, beyond = _MOST_DAMAGED - (aside.stat().st_size if aside.exists() else 0), 0
    appender = Appender(aside)
    for line in log_lines.read(path, metrics_line):
        if not _is_damaged(line):
            continue
        if len(_ended(line)) <= space:
            appender.add(_ended(line))
            space -= len(_ended(line))
        else:
            beyond += len(_ended(line))
    appender.write()
    but = f", but for {beyond:,} bytes, for which that is too long" if beyond else ""
    log.warning("%s: %s damaged; moved to %s%s", path, damaged, aside.name, but)


def _truncated(path: Path, size: int) -> bool:
    """Cut the file to its first `size` bytes. False if it must not be: another name leads to it as well."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        return False
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        return False
    try:
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)
    return True
