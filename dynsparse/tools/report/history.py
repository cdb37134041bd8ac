"""history.jsonl: the sessions of a run, from each start to its end, or to a death without one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynsparse.tools.report.checked import whole_number, word

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Session:
    """What happened between a start and the next."""

    start: Record
    end: Record | None = None
    lost_steps: int = 0
    """Known to have been done before this start, and to be done again."""
    followed: bool = False
    """By another start."""

    @property
    def began_at(self) -> int:
        return int(self.start["step"])

    @property
    def resumed(self) -> bool:
        return bool(self.start["resumed"])

    @property
    def died(self) -> bool:
        """Another start followed, and there is no end: a fault, after which nothing could be written."""
        return self.end is None and self.followed


@dataclass(frozen=True)
class History:
    sessions: tuple[Session, ...] = ()
    damaged: tuple[int, ...] = ()
    """Numbers of lines, from 1."""

    @property
    def resumes(self) -> int:
        return sum(session.resumed for session in self.sessions)

    @property
    def deaths(self) -> int:
        return sum(session.died for session in self.sessions)

    @property
    def lost_steps(self) -> int:
        return sum(session.lost_steps for session in self.sessions)

    @property
    def world_sizes(self) -> list[int]:
        """In their order, without repetitions that follow each other."""
        sizes = [int(session.start["world_size"]) for session in self.sessions]
        return [size for index, size in enumerate(sizes) if index == 0 or size != sizes[index - 1]]


def read_history(path: Path) -> History | None:
    """None where there is no such file: runs of before it was written."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return None
    records, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            if line.endswith(b"\n"):  # Else it is being written.
                records.append(_checked(json.loads(line)))
        except (ValueError, RecursionError):
            damaged.append(number)
    return History(_sessions(records), tuple(damaged))


def _checked(record: Any) -> Record:
    if not isinstance(record, dict) or record.get("kind") not in ("start", "end"):
        raise ValueError("neither a start nor an end")
    word(record.get("time"))
    for key in ("step", "epoch"):
        whole_number(record.get(key))
    if record["kind"] == "start":
        _check_start(record)
    return record


def _check_start(record: Record) -> None:
    whole_number(record.get("world_size"))
    if record.get("reached") is not None:  # Runs of before it was written lack it.
        whole_number(record["reached"])
    if not isinstance(record.get("resumed"), bool):
        raise ValueError("it does not say whether it resumed")


def _sessions(records: Sequence[Record]) -> tuple[Session, ...]:
    sessions: list[Session] = []
    seen = 0  # The latest step that is known to have been done.
    for record in records:
        step = int(record["step"])
        if record["kind"] == "start":
            if sessions:
                sessions[-1] = replace(sessions[-1], followed=True)
            seen = max(seen, record.get("reached") or 0)
            sessions.append(Session(record, lost_steps=max(0, seen - step) if record["resumed"] else 0))
            seen = step
        elif sessions:
            sessions[-1] = replace(sessions[-1], end=record)
            seen = max(seen, step)
    return tuple(sessions)
