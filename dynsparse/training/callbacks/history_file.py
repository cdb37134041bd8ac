"""history.jsonl: each start and end of the run, by whom, and with what."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from dynsparse.appender import Appender
from dynsparse.training.callbacks.base import LogWriter, RunReport, Summary
from dynsparse.training.run import log_lines, names
from dynsparse.training.run.clock import now


class HistoryFile(LogWriter):
    """Appends a line at each start and each end. A start that follows a start tells of a run that died in between.

    A resume never cuts it, unlike metrics.jsonl. A start at fewer steps than were reached before tells what was lost.
    """

    def __init__(self, path: Path, *, launch: str | None = None, resumed_from: Path | None = None) -> None:
        super().__init__(Appender(path))
        self.launch = launch
        self.resumed_from = resumed_from

    def on_start(self, run: RunReport) -> None:
        self.add_line(
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
        self.add_line(
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
