"""history.jsonl: the sessions of a run, each from a start to an end, or to a death without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dynsparse.training.run import log_lines
from dynsparse.training.run.log_lines import Damaged
from dynsparse.training.run.log_records import Record, history_line


@dataclass(frozen=True)
class Session:
    """Lines of history between a start and the next."""

    start: Record
    end: Record | None = None
    lost_steps: int = 0
    """Steps that are known to have been done before this start, and were done again."""
    followed: bool = False
    """Tells that another start came after it."""

    @property
    def began_at(self) -> int:
        """Step at which it began."""
        return int(self.start["step"])

    @property
    def resumed(self) -> bool:
        """Tell whether it resumed from a checkpoint."""
        return bool(self.start["resumed"])

    @property
    def died(self) -> bool:
        """Tell whether it ended without a word: another start followed, and there is no end."""
        return self.end is None and self.followed


@dataclass(frozen=True)
class History:
    """All sessions of a run, in their order."""

    sessions: tuple[Session, ...] = ()
    damaged: Damaged = field(default_factory=Damaged)
    """Lines that are not what training writes; they are skipped."""

    @property
    def resumes(self) -> int:
        """Sessions that resumed."""
        return sum(session.resumed for session in self.sessions)

    @property
    def deaths(self) -> int:
        """Sessions that died."""
        return sum(session.died for session in self.sessions)

    @property
    def lost_steps(self) -> int:
        """Steps that are known to have been done twice."""
        return sum(session.lost_steps for session in self.sessions)

    @property
    def world_sizes(self) -> list[int]:
        """Numbers of workers in their order, without repetitions that follow each other."""
        sizes = [int(session.start["world_size"]) for session in self.sessions]
        return [size for index, size in enumerate(sizes) if index == 0 or size != sizes[index - 1]]


def read_history(path: Path) -> History | None:
    """Read the file. None where there is none: older runs wrote none."""
    records, damaged = [], Damaged()
    try:
        for line in log_lines.read(path, history_line):
            if line.unfinished:  # It is being written.
                continue
            if line.record is None:
                damaged.add(line.number)
            else:
                records.append(line.record)
    except FileNotFoundError:
        return None
    return History(_sessions(records), damaged)


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
