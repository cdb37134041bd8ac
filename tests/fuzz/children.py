"""Runs a function in a forked child, under limits, and says how it ended."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.fuzz.limits import Limits

_LOOK_SECONDS = 0.02
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Outcome:
    """End of a child process."""

    code: int | None
    """Its exit code; negative for a signal; None if it was killed for its time or its memory."""
    out: str
    err: str
    seconds: float
    grown: int
    """Bytes of memory that it took beyond those that it was forked with."""
    hung: bool = False
    bloated: bool = False
    left_behind: bool = False
    """Whether processes that it started lived on."""


def run(function: Callable[[], object], scratch: Path, limits: Limits) -> Outcome:
    """Call `function` in a child with a process group of its own. Its output goes to files in `scratch`.

    An int that it returns, or raises as SystemExit, is the exit code. This process must have no other threads, and no
    other children.
    """
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    out, err = scratch / "stdout", scratch / "stderr"
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        _be_child(function, out, err, limits)
    began = time.monotonic()
    base = peak = _resident(pid)
    hung = bloated = False
    descriptor = os.pidfd_open(pid)
    try:
        while not select.select([descriptor], [], [], _LOOK_SECONDS)[0]:
            peak = max(peak, base + _grown(pid, base))
            bloated = peak - base > limits.memory
            hung = time.monotonic() - began > limits.seconds
            if hung or bloated:
                break
    finally:
        os.close(descriptor)
        kill_group(pid, only_leader=True)
        _, status, usage = os.wait4(pid, 0)
        seconds = time.monotonic() - began
        left_behind = _outlived(pid, 0 if hung or bloated else limits.grace) and not (hung or bloated)
    grown = max(peak, usage.ru_maxrss * 1024) - base
    code = None if hung or bloated else os.waitstatus_to_exitcode(status)
    return Outcome(code, _text(out), _text(err), seconds, grown, hung, bloated or grown > limits.memory, left_behind)


def _be_child(function: Callable[[], object], out: Path, err: Path, limits: Limits) -> NoReturn:
    code = 1
    try:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # Nothing outlives the process that watches it.
        with suppress(OSError):
            os.setsid()
        for path, number in ((out, 1), (err, 2)):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, number)
            os.close(file)
        file = os.open(os.devnull, os.O_RDONLY)
        os.dup2(file, 0)
        os.close(file)
        # The names, too, of what was caught before, as by pytest.
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
        limits.apply()
        code = _code(function)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _code(function: Callable[[], object]) -> int:
    try:
        result = function()
    except SystemExit as end:
        result = end.code
    except BaseException:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
        return 1
    return result if isinstance(result, int) else 0 if result is None else 1


def kill_group(pid: int, *, only_leader: bool = False) -> bool:
    """Whether there was anything to kill."""
    try:
        if only_leader:
            os.kill(pid, signal.SIGKILL)
        else:
            os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _outlived(group: int, seconds: float) -> bool:
    """Whether processes of the group are still there after so long. Kills them."""
    end = time.monotonic() + seconds
    while _is_there(group) and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
    found = kill_group(group) if _is_there(group) else False
    _reap()
    return found


def _is_there(group: int) -> bool:
    _reap()
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _reap() -> None:
    """Processes whose parents ended come to this one, and count as there until it has asked for their exit codes."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def _grown(pid: int, base: int) -> int:
    """Bytes that a process and all that it has started take, each beyond `base`, which a fork shares with it."""
    return max(0, _resident(pid) - base) + sum(_grown(child, base) for child in _children(pid))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(1 << 20).decode(errors="backslashreplace")
    except OSError:
        return ""
