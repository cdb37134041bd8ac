"""A file of events for TensorBoard that waits for storage that is full or gone."""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter

from dynsparse.appender import Appender
from dynsparse.training.run import names

_VERSION = "brain.Event:2"
_numbers = itertools.count()


class EventFile:
    """Takes events as torch's `FileWriter` does, and keeps them until `records` writes them.

    It has no thread of its own: the thread that trains writes.
    """

    def __init__(self, folder: Path) -> None:
        name = f"{names.EVENTS}.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.path = folder / name
        header = _record(Event(wall_time=time.time(), file_version=_VERSION))
        self.records = Appender(self.path, lines=False, header=header)

    def begin_anew(self, step: int) -> None:
        """Let TensorBoard forget what earlier files tell of this step and later ones."""
        self.add_event(Event(file_version=_VERSION), step)
        self.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)

    def add_summary(self, summary: Any, global_step: int | None = None, walltime: float | None = None) -> None:
        """Add an event of this summary, as `FileWriter.add_summary` does."""
        self.add_event(Event(summary=summary), global_step, walltime)

    def add_event(self, event: Any, step: int | None = None, walltime: float | None = None) -> None:
        """Add an event, as `FileWriter.add_event` does. `walltime` is in seconds; None for now."""
        event.wall_time = time.time() if walltime is None else walltime
        if step is not None:
            event.step = int(step)
        self.records.add(_record(event))


def _record(event: Any) -> bytes:
    """Return an event as the file holds it: its length, its bytes, a checksum of each."""
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
