"""metrics.jsonl: a line an epoch and a line a reallocation, for programs to read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dynsparse.appender import Appender
from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks.base import EpochReport, RunReport, Writer
from dynsparse.training.callbacks.cutting import cut
from dynsparse.training.callbacks.records import epoch_record, reallocation_record


class MetricsFile(Writer):
    """Appends a line for each record; a resume first cuts off what was written after its checkpoint.

    Damaged lines are no reason to refuse a resume: they are set aside, beside the file.
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
            cut(self.path, self._resume)
            self._resume = None
        self._lines.write()

    def sync(self) -> None:
        self._lines.sync()

    def on_start(self, run: RunReport) -> None:
        self._resume = run

    def on_reallocation(self, report: ReallocationReport) -> None:
        self._append(reallocation_record(report))

    def on_epoch(self, report: EpochReport) -> None:
        self._append(epoch_record(report))

    def _append(self, record: dict[str, Any]) -> None:
        self._lines.add((json.dumps(_finite(record), allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    """Return the value with null for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
