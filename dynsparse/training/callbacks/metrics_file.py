"""metrics.jsonl: a line an epoch and a line a reallocation, for programs to read."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynsparse import files
from dynsparse.appender import Appender
from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks.base import EpochReport, RunReport, Writer
from dynsparse.training.evaluate import Evaluation
from dynsparse.training.run import log_lines, names

log = logging.getLogger(__name__)

_MOST_DAMAGED = 16 << 20
"""Bytes."""


class MetricsFile(Writer):
    """Appends to the file; a resume first cuts off what was written after its checkpoint.

    What depends on the clock stands under "timing", all else is the same in
    every repetition of a run. Lines that are damaged are no reason to refuse a
    resume: they are set aside, beside the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = Appender(path)
        self._resume: RunReport | None = None
        """The start for which the file is still to be cut."""

    @property
    def pending(self) -> bool:
        return self._resume is not None or self._lines.pending

    def write(self) -> None:
        if self._resume is not None:
            _cut(self.path, self._resume)
            self._resume = None
        self._lines.write()

    def sync(self) -> None:
        self._lines.sync()

    def on_start(self, run: RunReport) -> None:
        self._resume = run

    def on_reallocation(self, report: ReallocationReport) -> None:
        self._append(
            {
                "kind": "reallocation",
                "step": report.step,
                "epoch": report.epoch,
                "dropped": sum(report.dropped.values()),
                "grown": sum(report.grown.values()),
                **report.scalars,
                "layers": {
                    name: {
                        "dropped": report.dropped[name],
                        "grown": report.grown[name],
                        "active": report.active[name],
                        "explored": report.explored[name],
                    }
                    for name in report.active
                },
                "repaired": list(report.repaired),
                "timing": {"seconds": report.seconds},
            }
        )

    def on_epoch(self, report: EpochReport) -> None:
        self._append(
            {
                "kind": "epoch",
                "epoch": report.epoch,
                "step": report.step,
                "lr": report.lr,
                "train_loss": report.train_loss,
                "train_top1": report.train_top1,
                **_numbers("test", report.results.test),
                **_numbers("validation", report.results.validation),
                **_numbers("train_evaluation", report.results.train),
                "best_top1": report.best_top1,
                "best_top1_on": report.results.selected_on,
                "budget": report.budget,
                "active_weights": sum(report.active.values()),
                "sparsity": report.total_sparsity,
                "model_sparsity": report.model_sparsity,
                "bad_files": report.bad_files,
                "skipped_steps": report.skipped_steps,
                "layers": {
                    name: {
                        "active": report.active[name],
                        "sparsity": report.sparsity[name],
                        **({"explored": report.explored[name]} if name in report.explored else {}),
                    }
                    for name in report.active
                },
                "timing": {
                    "images_per_second": report.images_per_second,
                    "seconds": report.seconds,
                    "gradient_bytes_per_step": report.gradient_bytes,
                },
            }
        )

    def _append(self, line: dict[str, Any]) -> None:
        self._lines.add((json.dumps(_finite(line), allow_nan=False) + "\n").encode())


def _numbers(name: str, result: Evaluation | None) -> dict[str, float]:
    if result is None:
        return {}
    numbers = {f"{name}_loss": result.loss, f"{name}_top1": result.top1, f"{name}_top5": result.top5}
    return {**numbers, f"{name}_left_out": result.left_out} if result.left_out else numbers


def _cut(path: Path, run: RunReport) -> None:
    """Keep the lines of before the point where the run goes on. OSError if that fails, with all as it was.

    Where they are the beginning of the file it is cut there, which takes no space on the disk and no time.
    """
    os.stat(path.parent)  # A folder that is gone for the moment is none without the file.
    for left in files.left_by_writers(path):
        with contextlib.suppress(OSError):
            left.unlink()
    found = _look(path, run)
    if found is None:
        return
    if found.damaged:
        aside = path.with_name(names.damaged(path.name))
        beyond = _set_aside(path, aside)
        but = f", but for {beyond:,} bytes, for which that is too long" if beyond else ""
        log.warning("%s: %s damaged; moved to %s%s", path, found.damaged, aside.name, but)
    if found.beginning is not None and _truncated(path, found.beginning):
        return
    if path.is_symlink():
        log.warning("%s is a link; a file takes its place, and what the link leads to stays as it is", path)
    with files.whole(path) as file:
        for line in log_lines.read(path, log_lines.metrics_line):
            if _is_before(line, run):
                file.write(line.content.rstrip(b"\n") + b"\n")


@dataclass(frozen=True)
class _Found:
    damaged: log_lines.Damaged
    beginning: int | None
    """Bytes that hold the lines to be kept, and nothing else. None if they are no such beginning."""


def _look(path: Path, run: RunReport) -> _Found | None:
    """What is in the file. None if there is none, or what stands there is none and was moved aside."""
    if not path.is_file():  # Through a link too: nothing is written to its target.
        files.make_way(path)
        return None
    damaged, kept, left_out = log_lines.Damaged(), 0, 0
    in_order = True
    try:
        for line in log_lines.read(path, log_lines.metrics_line):
            if _is_damaged(line):
                damaged.add(line.number)
            if _is_before(line, run):
                in_order &= left_out == 0 and line.content.endswith(b"\n")
                kept += len(line.content)
            else:
                left_out += len(line.content)
    except PermissionError:
        files.set_aside(path, "may not be read")
        return None
    return _Found(damaged, kept if in_order else None)


def _is_damaged(line: log_lines.Line) -> bool:
    """Half a line at the end is not: a kill leaves it."""
    if line.record is None:
        return not line.unfinished
    return not log_lines.is_of_kind_known(line.record)


def _is_before(line: log_lines.Line, run: RunReport) -> bool:
    """Whether a line tells of something before the point where the run goes on."""
    record = line.record
    if record is None or not log_lines.is_of_kind_known(record):
        return False
    return bool(record["epoch"] < run.start_epoch if record["kind"] == "epoch" else record["step"] <= run.start_step)


def _set_aside(path: Path, aside: Path) -> int:
    """Append the damaged lines to another file, up to a size at which nobody reads it. Returns the bytes beyond."""
    files.make_way(aside)
    room, beyond = _MOST_DAMAGED - (aside.stat().st_size if aside.exists() else 0), 0
    appender = Appender(aside)
    for line in log_lines.read(path, log_lines.metrics_line):
        if not _is_damaged(line):
            continue
        record = line.content.rstrip(b"\n") + b"\n"
        if len(record) <= room:
            appender.add(record)
            room -= len(record)
        else:
            beyond += len(record)
    appender.write()
    return beyond


def _truncated(path: Path, size: int) -> bool:
    """Cut the file, if it may be: not what another name leads to as well."""
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


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null instead."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
