"""A launch of torchrun: its id, and the marks that workers leave for each other and for later attempts.

A launch is one command of torchrun. After a fault, and when machines join or leave, torchrun ends all workers and runs
the same command line again: another attempt of the launch. Each machine has a folder for the launch, with one in it for
each attempt, and in that one for each worker: LAUNCH/attempt_K/LOCAL_RANK/error.json. torchrun removes it in the end.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PARENT = os.getppid()
"""The process that started this one, as it was when this module was imported: torchrun, under torchrun."""

_OVER = "dynsparse-is-over"
_TAKEN = "dynsparse-has-taken"


def launch_id() -> str | None:
    """Return an id that all attempts of this launch share, and no other launch has; None without torchrun.

    It is the id of the rendezvous. A rendezvous without one ("none", the default of a static one) has the launch's
    folder instead, whose name is never used again. It gives rank 0 to the same machine in each attempt.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if name not in ("", "none"):
        return name
    folder = _folder(of_attempt=False)
    return None if folder is None else str(folder)


def is_parent() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_retry() -> bool:
    """Return whether a fault on this machine made this attempt.

    False where machines joined or left, or another machine had the fault.
    """
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def end_launch(code: int) -> None:
    """Let later attempts on this machine end at once and silently with `code`: they could do no better."""
    folder = _folder(of_attempt=False)
    if folder is not None:
        with contextlib.suppress(OSError):
            (folder / _OVER).write_text(f"{code}\n")
    if path := os.environ.get("DYNSPARSE_EXIT_FILE"):
        with contextlib.suppress(OSError):
            Path(f"{path}.over").touch()  # For launch/agent.py: no further attempt is of use.


def over() -> int | None:
    """Return the exit code if an earlier attempt has called `end_launch` on this machine, else None."""
    folder = _folder(of_attempt=False)
    if folder is None:
        return None
    try:
        return int((folder / _OVER).read_text())
    except (OSError, ValueError):
        return None


def speaks_first() -> bool:
    """Return whether this worker is the first on its machine to ask, so that an error of all is printed once.

    Local rank 0 would not do: torchrun ends it as soon as another worker has left, perhaps before it has printed.
    """
    return _is_first("dynsparse-has-spoken")


def notices_first() -> bool:
    """Return whether this worker is the first to notice that torchrun is gone. An error may still be printed after."""
    return _is_first("dynsparse-has-noticed")


def forget_exit_code() -> None:
    """Empty the file of `note_exit_code`, so that an attempt that is killed leaves no code of the one before."""
    path = os.environ.get("DYNSPARSE_EXIT_FILE")
    if path and _is_first("dynsparse-has-begun"):
        with contextlib.suppress(OSError):
            Path(path).write_text("")


def note_exit_code(code: int) -> None:
    """Leave the code in DYNSPARSE_EXIT_FILE, if set: torchrun itself returns 1 for any failure of a worker."""
    path = os.environ.get("DYNSPARSE_EXIT_FILE")
    if path:
        partial = Path(f"{path}.{os.getpid()}.partial")
        with contextlib.suppress(OSError):  # The launcher may be gone, and its folder with it.
            partial.write_text(f"{code}\n")
            partial.replace(path)  # In one step: torchrun may end this process at any moment.


def _is_first(mark: str) -> bool:
    folder = _folder(of_attempt=True)
    if folder is None:
        return True
    try:
        (folder / mark).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _folder(*, of_attempt: bool) -> Path | None:
    """Return the folder of this attempt or of the launch; None without torchrun, or if it was told to keep none."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(file).parents[1 if of_attempt else 2] if file else None


def note_taken() -> None:
    """Let later attempts on this machine know that this launch has taken the run's folder: see `has_taken`."""
    folder = _folder(of_attempt=False)
    if folder is not None:
        with contextlib.suppress(OSError):
            (folder / _TAKEN).touch()


def has_taken() -> bool:
    """Return whether this or an earlier attempt of the launch has taken the run's folder on this machine."""
    folder = _folder(of_attempt=False)
    return folder is not None and (folder / _TAKEN).exists()
