"""The process that holds a run's folder: who it is, and whether it lives."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from uuid import uuid4

from dynsparse.files import json_object
from dynsparse.training.run.clock import now

_MOST_PROCESSES = 2**22
_LONGEST = 1000
"""Characters of a name that we wrote: a host's, a launch's."""


@dataclass(frozen=True)
class Holder:
    """A process, so that any other that sees the same files can tell which it is."""

    host: str
    process: int
    """Its number where it runs."""
    started: int | None
    """Clock ticks since its machine booted. It tells processes apart that got the same number."""
    space: str | None
    """Scope of its number: this boot of its machine, and its container's process numbers."""
    launch: str | None
    since: str
    mark: str
    """Mark of one lock alone: a process may hold several in one second, one after the other."""

    @classmethod
    def myself(cls, launch: str | None) -> Holder:
        """Return this process as the holder of a new lock."""
        process = os.getpid()
        return cls(socket.gethostname(), process, _started(process), _space(), launch, now(), uuid4().hex)

    def encode(self, alive: str) -> bytes:
        """Return the content of the file, always of the same length. `alive`: the latest sign of life."""
        return (json.dumps({**asdict(self), "alive": alive}) + "\n").encode()

    @classmethod
    def decode(cls, content: bytes) -> Holder | None:
        """Return the holder; None for what is no holder, such as a file that was just made and is empty."""
        try:
            found = json_object(content)
            holder = cls(**{field.name: found[field.name] for field in fields(cls)})
        except (ValueError, KeyError):
            return None
        return holder if holder._is_sound() else None

    def _is_sound(self) -> bool:
        texts = (self.host, self.since, self.mark, self.space or "", self.launch or "")
        numbers = (self.process, self.started or 0)
        return (
            all(isinstance(text, str) and text.isprintable() and len(text) <= _LONGEST for text in texts)
            and all(type(number) is int for number in numbers)
            and 0 < self.process <= _MOST_PROCESSES
        )

    def lives(self) -> bool | None:
        """Tell whether the process lives. None from another machine, or another container of this one."""
        # A machine's name too: those that were cloned as they ran have one boot.
        if self.space is None or (self.space, self.host) != (_space(), socket.gethostname()):
            return None
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # Another user's.
            pass
        started = _started(self.process)
        return started == self.started if _readable(self.process) else True

    def __str__(self) -> str:
        launch = f", launch '{self.launch}'" if self.launch else ""
        return f"process {self.process} on {self.host} (since {self.since}{launch})"


def _readable(process: int) -> bool:
    """Tell whether /proc has the process; a machine may hide other users' processes."""
    return Path(f"/proc/{process}/stat").exists()


def _started(process: int) -> int | None:
    """Return its start time; None if it is gone, or has ended and waits for its parent to hear of it."""
    try:
        # Its name may hold anything, and stands in parentheses.
        state, *numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(numbers[18])


def _space() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
