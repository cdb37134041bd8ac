"""The most physical memory that a process has held since it began."""

from __future__ import annotations

from pathlib import Path


def peak(process: int | str = "self") -> int:
    """Return MiB. getrusage would tell those of the process that started this one, where that held more."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) >> 10
