"""metrics.jsonl: a line an epoch and a line a reallocation, for programs to read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dynsparse.appender import Appender
from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks.base import EpochReport, LogWriter, RunReport, ShrinkReport
from dynsparse.training.callbacks.cutting import cut
from dynsparse.training.callbacks.records import epoch_record, reallocation_record, shrink_record


class MetricsFile(LogWriter):
    """Appends a line for each record; a resume first cuts off what was written after its checkpoint.

    Damaged lines are no reason to refuse a resume: they are set aside, beside the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(Appender(path))
        self._resume: RunReport | None = None
        """The start for which the file is still to be cut."""

    @property
    def pending(self) -> bool:
        return self._resume is not None or super().pending

    def write(self) -> None:
        if self._resume is not None:
            cut(self.path, self._resume)
            self._resume = None
        super().write()

    def on_start(self, run: RunReport) -> None:
        self._resume = run

    def on_reallocation(self, report: ReallocationReport) -> None:
        self.add_line(_finite(reallocation_record(report)))

    def on_shrink(self, report: ShrinkReport) -> None:
        self.add_line(_finite(shrink_record(report)))

    def on_epoch(self, report: EpochReport) -> None:
        self.add_line(_finite(epoch_record(report)))


def _finite(value: Any) -> Any:
    """Return the value with null for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
