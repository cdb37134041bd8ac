"""history.jsonl: when the run was started, resumed and ended, by whom, and with what."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from dynsparse.appender import Appender
from dynsparse.training.callbacks.base import RunReport, Summary, Writer
from dynsparse.training.run import log_lines, names
from dynsparse.training.run.clock import now


class HistoryFile(Writer):
    """Appends a line at each start and each end. A start that follows a start tells of a run that died in between.

    A resume never cuts it, unlike metrics.jsonl. A start at fewer steps than were reached before tells what was lost.
    """

    def __init__(self, path: Path, *, launch: str | None = None, resumed_from: Path | None = None) -> None:
        self.path = path
        self.launch = launch
        self.resumed_from = resumed_from
        self._lines = Appender(path)

    @property
    def pending(self) -> bool:
        return self._lines.pending

    def write(self) -> None:
        self._lines.write()

    def sync(self) -> None:
        self._lines.sync()

    def on_start(self, run: RunReport) -> None:
        self._append(
            {
                "kind": "start",
                "time": now(),
                "step": run.start_step,
                "epoch": run.start_epoch,
                # As long as the resume has not cut it.
                "reached": log_lines.last_step(self.path.with_name(names.METRICS)),
                "resumed": run.resumed,
                "from": None if self.resumed_from is None else str(self.resumed_from),
                "world_size": run.world_size,
                "device": run.device,
                "host": socket.gethostname(),
                "process": os.getpid(),
                "launch": self.launch,
                "versions": dict(run.versions),
            }
        )

    def on_end(self, summary: Summary) -> None:
        self._append(
            {
                "kind": "end",
                "time": now(),
                "step": summary.steps,
                "epoch": summary.epochs,
                "status": summary.status,
                "skipped_steps": summary.skipped_steps,
                "bad_files": summary.bad_files,
                "desyncs_repaired": summary.desyncs_repaired,
            }
        )

    def _append(self, line: dict[str, Any]) -> None:
        self._lines.add((json.dumps(line) + "\n").encode())
