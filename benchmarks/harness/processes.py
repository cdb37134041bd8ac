"""CPU time and memory of processes, from /proc."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.record import ROOT, Result


def stat(process: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, which may hold blanks; none if the process is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def everyone() -> dict[int, list[str]]:
    """Return `stat` of all processes of the machine, by number."""
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return {number: fields for number in numbers if (fields := stat(number))}


def cpu_of(fields: list[str]) -> float:
    """Return the CPU seconds of a process and its threads."""
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def processes() -> dict[int, list[str]]:
    """Return `stat` of this process and of all below it."""
    known = everyone()
    found = [os.getpid()]
    for process in found:
        found += [child for child, fields in known.items() if int(fields[1]) == process]
    return {process: known[process] for process in found if process in known}


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and those below it, while they live."""
    return sum(map(cpu_of, processes().values()))


def memory() -> Result:
    """Resident memory in MiB: RSS, in which a page shared by two processes counts twice, and PSS, in which it does not.

    PSS is None where the system does not tell.
    """
    totals = {"Rss": 0.0, "Pss": 0.0}
    for process in processes():
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, value = line.partition(":")
            if key in totals:
                totals[key] += int(value.split()[0]) / 1024
    if totals["Rss"]:
        return {"rss_mib": totals["Rss"], "pss_mib": totals["Pss"]}
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20, "pss_mib": None}


class Ended(NamedTuple):
    """A command that has ended, and what it took."""

    code: int
    said: str
    seconds: float
    """Time by the clock, to the end of the process: on a busy machine mostly the start."""
    cpu: float
    """CPU seconds of all its processes."""
    mib: float
    """Most memory that its processes held at once, or one of them ever. Pages that they share count in each."""


def watched(command: list[str], log: Path) -> Ended:
    """Run a command to its end, all it writes in a log. Its processes are looked at some fifty times a second."""
    began, peak = time.perf_counter(), 0
    cpu: dict[int, float] = {}
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        while process.poll() is None:
            session = {number: fields for number, fields in everyone().items() if int(fields[3]) == process.pid}
            cpu |= {number: cpu_of(fields) for number, fields in session.items()}
            resident = sum(int(fields[21]) * os.sysconf("SC_PAGE_SIZE") for fields in session.values())
            peak = max(peak, resident, *map(highest, session))
            time.sleep(0.02)
    seconds = time.perf_counter() - began
    return Ended(process.returncode, log.read_text(errors="replace"), seconds, sum(cpu.values()), peak / 2**20)


def highest(process: int) -> int:
    """Return the most bytes that a process has held: between two looks it may have been more than at both."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
