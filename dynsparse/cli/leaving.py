"""The end of a training process: its last message, and the exit code that it leaves for its launcher."""

from __future__ import annotations

import os
import platform
import sys
import traceback
from typing import NoReturn

from dynsparse import torchrun
from dynsparse.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    DesyncError,
    StopRequested,
    StorageFaultError,
    UserError,
)
from dynsparse.runtime import Worker, lost_peer
from pipelines.common import streams


def ended_by(error: BaseException, worker: Worker) -> int:
    """Say what the exception means, and return its exit code. Call it while the exception is handled."""
    match error:
        case SystemExit():  # argparse's: 0 after --help, 2 for what it cannot read.
            return int(error.code or EXIT_DONE)
        case StopRequested():
            return EXIT_STOPPED
        case KeyboardInterrupt():
            return EXIT_INTERRUPTED
        case UserError():
            say(error)
            return EXIT_BAD_INPUT
        case DesyncError() | StorageFaultError():
            say(error)
        case _:
            _say_fault(error, worker)
    return EXIT_FAULT


def say(error: object) -> None:
    """Print an error on standard error, once a machine where all workers have the same."""
    if torchrun.speaks_first():
        print("".join(f"error: {line}\n" for line in str(error).splitlines()), end="", file=sys.stderr, flush=True)


def _say_fault(error: BaseException, worker: Worker) -> None:
    """Print a traceback, or one line where another worker, its machine or the network is at fault."""
    lost = lost_peer(error)
    if lost is None:
        traceback.print_exc()
    elif torchrun.over() is None:  # Else another worker of this launch has said why it ends.
        say(f"worker {worker.rank} on {platform.node()} has lost another worker ({lost})")


def noted(code: int, worker: Worker) -> int:
    """Leave the exit code where the launcher looks for it, and return it.

    It becomes 2 if what was printed could not be written. Bad input ends the launch: torchrun would try it again, and
    print the same again.
    """
    if code == EXIT_DONE and (problem := streams.lost_output()):
        say(problem)
        code = EXIT_BAD_INPUT
    if code == EXIT_BAD_INPUT:
        torchrun.end_launch(code)
    if worker.local_rank == 0 or code == EXIT_BAD_INPUT:
        torchrun.note_exit_code(torchrun.over() or code)  # Another's bad input looks like a fault from here.
    return code


def leave(code: int) -> NoReturn:
    """End the process without the interpreter's own ending.

    All that is worth closing is closed. What is left for the interpreter to take down are threads of libraries: once in
    hundreds of runs one is still alive then and aborts the process, which would make a fault of a run that is done; and
    after a fault they could wait for peers that will never answer.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_at_once(reason: str, same_launch: bool) -> None:
    """End the process from any thread, because the run's folder is no longer this process's.

    Nothing more is written to the folder. No later attempt on this machine starts either if the folder is another
    launch's. If it is the same launch's, rank 0 has moved to another machine, and a later attempt is welcome.
    """
    print(f"error: {reason}", file=sys.stderr, flush=True)
    if not same_launch:
        torchrun.end_launch(EXIT_FAULT)
    torchrun.note_exit_code(EXIT_FAULT)
    os._exit(EXIT_FAULT)
