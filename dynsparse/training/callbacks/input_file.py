"""input.json: what the network takes and gives, for whoever uses it later."""

from __future__ import annotations

import json
from pathlib import Path

from dynsparse import files
from dynsparse.training.callbacks.base import RunReport, Writer


class InputFile(Writer):
    """Written at the start (`network_input.network_input`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content: bytes | None = None

    @property
    def pending(self) -> bool:
        return self._content is not None

    def write(self) -> None:
        if self._content is not None:
            files.make_way(self.path)
            files.write_whole(self.path, self._content)
            self._content = None

    def on_start(self, run: RunReport) -> None:
        self._content = (json.dumps(run.input, indent=2) + "\n").encode()
