"""Read metrics.jsonl and history.jsonl line by line, damaged lines among them.

A resume and the report read the same lines in the same way, in memory that does not grow with the file.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dynsparse import files
from dynsparse.training.run.log_records import Record, is_of_kind_known, metrics_line, whole_number

_BEGINNING = re.compile(rb'(?=\{"kind": ")')
"""Beginning of each line that training writes."""
_TAIL = 2 * files.LONGEST_LINE


@dataclass(frozen=True)
class Line:
    """A line of a log, a piece of one that is damaged, or a record within one."""

    number: int
    """Counted from 1."""
    content: bytes
    record: Record | None
    """None if the line is damaged."""
    unfinished: bool = False
    """Tells that the file ends before the line does: it is being written, or its writer was killed."""


@dataclass
class Damaged:
    """Damaged lines: the numbers of the first few, and how many there are."""

    first: list[int] = field(default_factory=list)
    count: int = 0
    _last: int = 0

    def add(self, number: int) -> None:
        """Note a line, in ascending order. Several pieces of one line count once."""
        if number == self._last:
            return
        self._last = number
        self.count += 1
        if len(self.first) < 5:
            self.first.append(number)

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        """Beginning of a sentence, such as "lines 2, 3 and 7 more are"."""
        shown = ", ".join(map(str, self.first))
        more = f" and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        return f"line {shown} is" if self.count == 1 else f"lines {shown}{more} are"


def read(path: Path, check: Callable[[bytes], Record], start: int = 0) -> Iterator[Line]:
    """Return the lines of a log from the byte `start`. `check` makes a record of a line, or raises ValueError.

    OSError as in `files.open_regular`. A line that is too long comes in pieces, all damaged.
    """
    number, inside = 0, False
    for content in files.lines(path, start=start):
        number += not inside
        ended = content.endswith(b"\n")
        too_long = inside or (not ended and len(content) >= files.LONGEST_LINE)
        inside = not ended
        if too_long:
            yield Line(number, content, None)
        else:
            for part, record in _records(content, check):
                yield Line(number, part, record, unfinished=not ended and content.endswith(part))


def _records(content: bytes, check: Callable[[bytes], Record]) -> Iterator[tuple[bytes, Record | None]]:
    """Return a line and its record. Where its end was damaged, it holds the next line too: both are found."""
    whole = _checked(content, check)
    parts = [] if whole is not None else [part for part in _BEGINNING.split(content) if part]
    if len(parts) < 2:
        yield content, whole
        return
    for part in parts:
        yield part, _checked(part, check)


def _checked(content: bytes, check: Callable[[bytes], Record]) -> Record | None:
    try:
        return check(content)
    except ValueError:
        return None


def last_step(path: Path) -> int | None:
    """Return the last step in metrics.jsonl, looked for at its end first. None if there is none, or no file."""
    try:
        end = max(0, os.stat(path).st_size - _TAIL)
        for start in (end, 0) if end else (0,):
            steps = (_step(line) for line in read(path, metrics_line, start))
            found = deque((step for step in steps if step is not None), maxlen=1)
            if found:
                return found[0]
    except OSError:
        pass
    return None


def _step(line: Line) -> int | None:
    return whole_number(line.record["step"]) if line.record is not None and is_of_kind_known(line.record) else None
