"""history.jsonl: when the run was started, resumed and ended, by whom, and with what."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from dynsparse.training.callbacks.base import Callback, RunReport, Summary
from dynsparse.training.holder import now


class HistoryFile(Callback):
    """Appends a line at each start and each end. A start that follows a start is of a run that died in between.

    Never cut by a resume, unlike metrics.jsonl: a start at fewer steps than
    were reached before tells what was lost.
    """

    def __init__(self, path: Path, *, launch: str | None = None, resumed_from: Path | None = None) -> None:
        self.path = path
        self.launch = launch
        self.resumed_from = resumed_from

    def on_start(self, run: RunReport) -> None:
        self._append(
            {
                "kind": "start",
                "time": now(),
                "step": run.start_step,
                "epoch": run.start_epoch,
                "reached": self._reached(),
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

    def _reached(self) -> int | None:
        """The last step that metrics.jsonl tells of, as long as the resume has not cut it."""
        try:
            lines = self.path.with_name("metrics.jsonl").read_bytes().splitlines()
        except OSError:
            return None
        for line in reversed(lines):
            try:
                return int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                continue  # Half a line, such as a kill leaves it.
        return None

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
        text = json.dumps(line) + "\n"
        with self.path.open("a+b") as file:
            # A start that died as it wrote, or found the disk full, has left half a line.
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
                text = "\n" + text
            file.write(text.encode())
