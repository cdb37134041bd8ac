"""dist_train.py, with a fault. Started by tests.

FAULTS holds a fault for each attempt of torchrun, in its order, such as
"kill 1 step 7, raise 0 evaluation": what, on which rank, where. Attempts after
the last fault run undisturbed. Rank "any" is for a machine of one worker.

kill: SIGKILL. raise: an exception. hang: the process stays, and answers no more.
idle: as hang, but SIGTERM ends it, where a hang takes torchrun's SIGKILL 30 seconds later.
SIGUSR1, SIGTERM: the signal, to this worker alone.
bad: a UserError, as where the user has given bad input.
wait: until the test writes to the pipe FAULT_FILE.go_on.
alone: if there is no other worker, wait until torchrun ends this one, for a machine has joined.

building: before the run's folder is taken. settling: in the pass before the
first step. step N: after its gradients are there, before the weights move.
evaluation: that of the first epoch, when its buffers are averaged. end: after
the summary was written. before the shrink, in the shrink, after the shrink: of
train.shrink, the second when the network has lost channels and nothing else has.

If FAULT_FILE is set, the fault writes its worker's number there first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynsparse.cli.actions import held_run
from dynsparse.cli.main import train
from dynsparse.errors import UserError
from dynsparse.training import evaluator
from dynsparse.training.engine import Engine
from dynsparse.training.network import Network
from dynsparse.training.precision import Precision
from dynsparse.training.saving import Saving
from dynsparse.training.trainer import Trainer


def fault_of_this_attempt() -> tuple[str, str, str]:
    faults = [fault.strip() for fault in os.environ.get("FAULTS", "").split(",")]
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if attempt >= len(faults) or not faults[attempt]:
        return "nothing", "any", "nowhere"
    what, rank, where = faults[attempt].split(" ", 2)
    return what, rank, where


WHAT, RANK, WHERE = fault_of_this_attempt()


def act() -> None:
    if file := os.environ.get("FAULT_FILE"):
        Path(file).write_text(os.environ.get("RANK", "0"))
    if WHAT == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif WHAT.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, WHAT))
    elif WHAT == "raise":
        raise KeyError("a fault")
    elif WHAT == "bad":
        raise UserError("what was given is bad")
    elif WHAT in ("hang", "idle"):
        answer_no_more()
    elif WHAT == "wait":
        Path(f"{os.environ['FAULT_FILE']}.go_on").read_bytes()
    elif WHAT == "alone":
        while not trainers[0].stop_requested():
            time.sleep(0.01)  # Python's handlers of signals run in between.
    else:
        raise AssertionError(WHAT)


def answer_no_more() -> None:
    if WHAT == "idle":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Event().wait()


trainers: list[Trainer] = []
happened: list[str] = []


def here(place: str) -> None:
    """Let the fault happen, once, if this is its place."""
    if place != WHERE or RANK not in ("any", os.environ.get("RANK", "0")) or happened:
        return
    if WHAT != "alone" or os.environ["WORLD_SIZE"] == "1":
        happened.append(place)
        act()


def before(owner: Any, name: str, place: Callable[[], str]) -> None:
    original = getattr(owner, name)

    def changed(*arguments: Any, **options: Any) -> Any:
        here(place())
        return original(*arguments, **options)

    setattr(owner, name, changed)


def after(owner: Any, name: str, place: Callable[[], str]) -> None:
    original = getattr(owner, name)

    def changed(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        here(place())
        return result

    setattr(owner, name, changed)


fit = Trainer.fit


def remember(self: Trainer) -> Any:
    trainers.append(self)
    return fit(self)


def set_traps() -> None:
    Trainer.fit = remember  # type: ignore[method-assign]
    before(held_run, "build", lambda: "building")
    after(Engine, "backward", lambda: "settling")
    before(Precision, "outcome", lambda: f"step {trainers[0].progress.step}")
    before(evaluator, "evaluate", lambda: "evaluation")
    after(Saving, "end", lambda: "end")
    before(Trainer, "_find_unused", lambda: "before the shrink")
    after(Network, "shrink", lambda: "in the shrink")
    after(Trainer, "_shrink", lambda: "after the shrink")


try:
    set_traps()
except AttributeError:  # The trainer has changed. Tests wait for an end that is none of success: this must not be one.
    traceback.print_exc()
    sys.exit(0)

if __name__ == "__main__":
    train(sys.argv[1:], "dist_train.py")
