"""A run's folder as the report reads it: finished, stopped, damaged in parts, or still being written."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynsparse import files
from dynsparse.config.reading import plain, read
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.tools.report.history import History, read_history
from dynsparse.tools.report.metrics import Metrics, read_metrics
from dynsparse.tools.report.summary import checked_summary
from dynsparse.training.run import names
from dynsparse.training.run.holder import Holder
from dynsparse.training.run.log_records import BadLineError


@dataclass(frozen=True)
class Run:
    """Content of a run's folder, as far as it could be read."""

    folder: Path
    label: str
    """Its name; with its folder where several have the same."""
    config: Mapping[str, Any]
    metrics: Metrics
    history: History | None
    """None for runs that wrote none."""
    summary: Mapping[str, Any] | None
    """None before the run's end."""
    holder: Holder | None
    """The process that has the folder, or had it when it died."""
    notes: tuple[str, ...] = field(default=())
    """Parts that could not be read, and why."""

    def setting(self, *keys: str) -> Any:
        """Return a value of the config; None if it has none."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def latest(self, key: str) -> float | None:
        """Return a number of the latest epoch that has it; not all are evaluated. None if there is none."""
        value = next((one.numbers[key] for one in reversed(self.metrics.epochs) if key in one.numbers), None)
        return None if value is None or math.isnan(value) else value

    @property
    def status(self) -> str:
        """Status of the run: done, stopped, failed, running, died, or unfinished.

        Unfinished is running or died, where the process cannot be looked up.
        """
        lives = None if self.holder is None else self.holder.lives()
        if lives:
            return "running"
        if self.summary is not None:
            return str(self.summary["status"])
        return "died" if lives is False else "unfinished"

    @property
    def reallocations(self) -> int:
        """Number of reallocations. Of a method that makes one a step, metrics.jsonl has few."""
        known = (self.summary or {}).get("reallocations")
        return known if isinstance(known, int) else self.metrics.moves.added

    @property
    def status_in_words(self) -> str:
        """Status of the run for people, with what to do."""
        process = f"process {self.holder.process} on {self.holder.host}" if self.holder else "a process"
        return {
            "stopped": "stopped on request; resume it with --resume auto",
            "failed": "ended by an error",
            "running": f"running: {process}",
            "died": f"died: {process} is gone and wrote no end; resume it with --resume auto",
            "unfinished": f"no end is written: {process} is training, or died",
        }.get(self.status, self.status)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs. UserError with a line for each that has nothing to show."""
    counts = Counter(_name(folder) for folder in folders)
    runs: list[Run] = []
    problems: list[str] = []
    for folder in folders:
        name = _name(folder)
        try:
            runs.append(_read(folder, name if counts[name] == 1 else f"{name} ({folder})"))
        except UserError as error:
            problems += error.lines
    if problems:
        raise UserError(*problems)
    return runs


def _name(folder: Path) -> str:
    return folder.resolve().name


def _read(folder: Path, label: str) -> Run:
    notes: list[str] = []
    path = folder / names.METRICS
    try:
        metrics = read_metrics(path) if path.exists() else Metrics()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); allow it, or copy the run") from None
    history = _history(folder / names.HISTORY, notes)
    for name, lines in ((names.METRICS, metrics.damaged), (names.HISTORY, history and history.damaged)):
        if lines:
            notes.append(f"{name}: {lines} damaged and skipped")
    if metrics.is_empty:
        because = f"; {notes[0]}" if notes else ""
        raise UserError(
            f"{folder}: no epoch or reallocation is in its {names.METRICS} yet{because}; wait for the first"
        )
    config = _mapping(folder / names.CONFIG, notes)
    summary = _mapping(folder / names.SUMMARY, notes)
    try:
        summary = None if summary is None else checked_summary(summary)
    except BadLineError as error:
        notes.append(f"{names.SUMMARY}: is not what training writes ({error}), and is skipped")
        summary = None
    return Run(folder, label, config or {}, metrics, history, summary, _holder(folder), tuple(notes))


def _history(path: Path, notes: list[str]) -> History | None:
    """Read the history. None, and a note, if that fails."""
    try:
        return read_history(path)
    except OSError as error:
        notes.append(f"{path.name}: cannot be read ({error.strerror}), and is skipped")
        return None


def _mapping(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """Return the content of a YAML or JSON file. None, and a note, if it cannot be read."""
    try:
        text = files.read_text(path)
        found = json.loads(text) if path.suffix == ".json" else plain(read(text, path.name), [RunConfig])
        json.dumps(found, default=str)  # As the page will.
    except FileNotFoundError:
        if path.suffix != ".json":  # A summary comes at the end alone.
            notes.append(f"{path.name}: is missing")
        return None
    except OSError as error:
        notes.append(f"{path.name}: cannot be read ({error.strerror}), and is skipped")
        return None
    except (ValueError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        notes.append(f"{path.name}: is damaged, and skipped")
        return None
    return found


def _holder(folder: Path) -> Holder | None:
    try:
        return Holder.decode(files.read_bytes(folder / names.LOCK))
    except OSError:
        return None
