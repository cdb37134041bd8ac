"""Limits of a child process."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

_MB = 1 << 20
_FIXED = 400 * _MB
"""Bytes of memory that any command may take: training the subjects takes a tenth."""
_TIMES = 12
"""Times what the run's files take on the disk: text that is parsed to objects takes most."""
_MOST = 6 << 30
"""Bytes above what it has that no child gets, so that a failure does no harm to the machine."""


@dataclass(frozen=True)
class Limits:
    seconds: float
    """Seconds by the wall clock, after which it counts as hanging."""
    memory: int = _FIXED
    """Bytes of memory beyond those that it was forked with, then it counts as a failure."""
    file: int = 2 << 30
    """Bytes of the largest file that it may write."""
    grace: float = 0
    """Seconds that processes which it started may live on."""

    @classmethod
    def of(cls, seconds: float, on_disk: int) -> Limits:
        return cls(seconds, _FIXED + _TIMES * on_disk)

    def apply(self) -> None:
        """Set the limits of this process. The deadline and `memory` are watched from outside."""
        data = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        for what, most in (
            (resource.RLIMIT_DATA, data + _MOST),
            (resource.RLIMIT_FSIZE, self.file),
            (resource.RLIMIT_CORE, 0),
        ):
            hard = resource.getrlimit(what)[1]
            resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
