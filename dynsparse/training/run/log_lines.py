"""metrics.jsonl and history.jsonl, read line by line: what training writes, or damaged.

Files are cut, mixed up and edited by hand, and disks change bits. A resume and
the report read the same lines in the same way, in memory that does not grow
with the file.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynsparse import files

Record = Mapping[str, Any]

#: Beyond, a number tells nothing, and sums and axes overflow.
LARGEST = 1e100
#: Beyond, float64 does not tell neighbours apart.
MOST = 2**53
#: Of a line that tells of a reallocation: what is no number of the method's.
KNOWN = {"kind", "step", "epoch", "dropped", "grown", "layers", "repaired", "timing"}
#: With which each line begins that training writes.
_BEGINNING = re.compile(rb'(?=\{"kind": ")')
_TAIL = 2 * files.LONGEST_LINE


class BadLineError(ValueError):
    """A line that is not what training writes."""


@dataclass(frozen=True)
class Line:
    """A line of a log, a piece of one that is damaged, or a record within one."""

    number: int
    """From 1."""
    content: bytes
    record: Record | None
    """None if it is damaged."""
    unfinished: bool = False
    """Whether the file ends before the line does: it is being written, or its writer was killed."""


@dataclass
class Damaged:
    """Which lines are: the numbers of the first few, and how many."""

    first: list[int] = field(default_factory=list)
    count: int = 0
    _last: int = 0

    def add(self, number: int) -> None:
        """In ascending order. Several pieces of one line count once."""
        if number == self._last:
            return
        self._last = number
        self.count += 1
        if len(self.first) < 5:
            self.first.append(number)

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        """As "lines 2, 3 and 7 more are", to go on from."""
        shown = ", ".join(map(str, self.first))
        more = f" and {self.count - len(self.first):,} more" if self.count > len(self.first) else ""
        return f"line {shown} is" if self.count == 1 else f"lines {shown}{more} are"


def read(path: Path, check: Callable[[bytes], Record], start: int = 0) -> Iterator[Line]:
    """The lines of a log from the byte `start`. `check` makes a record of a line, or raises ValueError.

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
    """A line, and what it holds. Where a line's end was damaged, the line after it is found nevertheless."""
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
    """The last step that metrics.jsonl tells of; looked for at its end first. None if there is none, or no file."""
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


def metrics_line(content: bytes) -> Record:
    """A line of metrics.jsonl. Kinds to come are let through unseen. ValueError for anything else."""
    line = files.json_object(content.decode("utf-8"))
    check = {"epoch": _check_epoch, "reallocation": _check_reallocation}.get(word(line.get("kind")))
    if check is not None:
        _check(check, line)
    return line


def is_of_kind_known(line: Record) -> bool:
    return line["kind"] in ("epoch", "reallocation")


def history_line(content: bytes) -> Record:
    """A line of history.jsonl. ValueError for anything else."""
    line = files.json_object(content.decode("utf-8"))
    if line.get("kind") not in ("start", "end"):
        raise BadLineError("neither a start nor an end")
    _check(_check_session, line)
    return line


def _check(check: Callable[[Record], None], line: Record) -> None:
    try:
        check(line)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadLineError(str(error)) from error


def _check_epoch(line: Record) -> None:
    for key in ("epoch", "step"):
        whole_number(line[key])
    numbers(line)
    numbers(line.get("timing", {}))
    for layer in line["layers"].values():
        whole_number(layer["active"])
        for key in ("sparsity", "explored"):
            number(layer[key] if key == "sparsity" else layer.get(key))


def _check_reallocation(line: Record) -> None:
    whole_number(line["step"])
    numbers({key: value for key, value in line.items() if key not in KNOWN})
    number(line.get("timing", {}).get("seconds"))
    if not isinstance(line.get("repaired", []), list):
        raise BadLineError("repaired is no list")
    for layer in line["layers"].values():
        for key in ("dropped", "grown", "active"):
            whole_number(layer[key])
        number(layer.get("explored"))


def _check_session(line: Record) -> None:
    word(line.get("time"))
    for key in ("step", "epoch"):
        whole_number(line.get(key))
    if line["kind"] == "start":
        whole_number(line.get("world_size"))
        if line.get("reached") is not None:  # Runs of before it was written lack it.
            whole_number(line["reached"])
        if not isinstance(line.get("resumed"), bool):
            raise BadLineError("it does not say whether it resumed")


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        str(key): number(value)
        for key, value in line.items()
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }


def number(value: Any) -> float:
    """NaN for null, and for what is beyond LARGEST."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadLineError("no number")
    try:
        found = float(value)
    except OverflowError:
        raise BadLineError("an integer of hundreds of digits") from None
    return found if abs(found) <= LARGEST else float("nan")


def whole_number(value: Any) -> int:
    """A count: 0 to MOST."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
        raise BadLineError("no count")
    return value


def word(value: Any) -> str:
    if not isinstance(value, str):
        raise BadLineError("no text")
    return value
