"""summary.json: how a run ended."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from dynsparse.training.callbacks.base import Callback, RunReport, Summary


class SummaryFile(Callback):
    """Written at the end; a run that goes on removes the one of the session before."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, run: RunReport) -> None:
        self.path.unlink(missing_ok=True)

    def on_end(self, summary: Summary) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(dataclasses.asdict(summary), indent=2) + "\n")
        os.replace(partial, self.path)
