"""summary.json: how a run ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

from dynsparse import files
from dynsparse.training.callbacks.base import RunReport, Summary, Writer


class SummaryFile(Writer):
    """Written at the end. A resumed run removes the summary of the session before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._remove = False
        self._content: bytes | None = None

    @property
    def pending(self) -> bool:
        return self._remove or self._content is not None

    def write(self) -> None:
        files.make_way(self.path)
        if self._remove:
            for left in files.left_by_writers(self.path):
                with contextlib.suppress(OSError):
                    left.unlink()
            self.path.unlink(missing_ok=True)
            self._remove = False
        if self._content is not None:
            files.write_whole(self.path, self._content)
            self._content = None

    def on_start(self, run: RunReport) -> None:
        self._remove = True

    def on_end(self, summary: Summary) -> None:
        self._content = (json.dumps(dataclasses.asdict(summary), indent=2) + "\n").encode()
