"""Faults without end: one training run over two hosts, through forty of them at random moments.

    python -m benchmarks.soak [--faults 40] [--kinds suspend,gone] [--seed 0]

The hosts are network namespaces of this machine (tests/hosts.py; needs root), one worker each, joined by a link that
is slow on purpose, so that steps take long enough to be hit. They share a small file system (tests/storage.py), which
holds the run's folder. Faults, in random order and equal shares:

    kill      a worker gets SIGKILL; torchrun starts all workers again
    stop      torchrun gets SIGTERM on both hosts, as when a cluster takes its machines back; the job is queued again
    link      the second host's link is down for 5 to 25 s, where workers wait 10 s for each other
    damage    the newest checkpoint is cut short or a bit of it flips, then a worker gets SIGKILL
    full      the storage has no byte left for 3 to 15 s; in half of the cases a worker gets SIGKILL meanwhile
    readonly  the storage is read-only, likewise
    gone      the storage is not mounted, likewise
    suspend   the run is on one host with two workers, and all its processes stand still (SIGSTOP) until a launch on the
              other host has taken the folder over and trained on; then they wake, and must end without touching it

A torchrun that gives up is started again with the same command, as Slurm or Kubernetes would. In the end weights,
masks and metrics are compared with a run of the same config that nobody disturbed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.harness.script import keep_whole, plain_parser
from benchmarks.parts.soak.faults import FAULTS, Draws, Fault
from benchmarks.parts.soak.run import Run, options
from pipelines.common.command_line import at_least_1
from tests import hosts as namespaces
from tests import storage as mounts
from tests.hosts import Hosts
from tests.storage import Storage
from tests.training import runs

KINDS = tuple(FAULTS)
MANY, EPOCHS = 40, 48
"""Faults in all, and epochs of the run: what the kept figures are of."""
RATE = "20mbit"
MOST_STEPS_BETWEEN = 20


def why_not() -> str | None:
    """Return why this machine cannot have such hosts and storage; None if it can."""
    return namespaces.why_not() or mounts.why_not()


def soak(folder: Path, kinds: list[str], epochs: int, seed: int) -> tuple[list[Fault], Result]:
    """Return what happened, and counts. The run's folder is then `folder`/runs/soak."""
    draws = Draws(random.Random(seed))
    draws.chance.shuffle(kinds)
    happened: list[Fault] = []
    with ExitStack() as stack:
        storage = stack.enter_context(Storage(folder))
        hosts = stack.enter_context(Hosts(2, rate=RATE))
        for number in (0, 1):
            hosts.limit_inside(number)
        run = Run(hosts, storage, folder, epochs)
        stack.callback(run.end)
        for kind in kinds:
            goal = run.step() + draws.chance.randint(1, MOST_STEPS_BETWEEN)
            run.until(lambda goal=goal: run.step() >= goal)  # type: ignore[misc]
            if run.is_over:
                raise SystemExit(f"error: the run ended after {len(happened)} faults; give it more --epochs")
            happened.append(strike(run, kind, draws))
            say(len(happened), happened[-1])
        run.until(lambda: False)
        codes = run.codes()
        said = run.said()
        shutil.copytree(run.folder, folder / "runs" / "soak")
    counts = {
        "starts_of_torchrun": run.started,
        "launches_on_one_host": len(run.launches),
        "resumes": said.count("resuming from"),
        "damaged_checkpoints_passed_over": said.count(": damaged"),
        "exit_codes": codes,
    }
    return happened, counts


def strike(run: Run, kind: str, draws: Draws) -> Fault:
    """Do it, and wait until the run is beyond it."""
    fault, began = Fault(kind, run.step()), time.monotonic()
    FAULTS[kind](run, draws, fault)
    left_at = run.step()
    run.until(lambda: run.step() > left_at)
    fault.seconds = round(time.monotonic() - began, 1)
    return fault


def say(number: int, fault: Fault) -> None:
    print(f"{number:3} {fault.kind:8} step {fault.step:5} {fault.seconds:6.1f} s {fault.detail}")
    print("".join(f"    broken: {line}\n" for line in fault.broken), end="", flush=True)


def undisturbed(folder: Path, epochs: int) -> Path:
    """Train the same config by two workers of this machine. Returns the folder."""
    done = runs.dist_train(*options(folder / "runs", "whole", epochs), workers=2)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "whole"


def compare(actual: Path, expected: Path) -> dict[str, bool]:
    ours, theirs = runs.summary(actual), runs.summary(expected)
    keys = ("weight_digest", "mask_digest", "rank_digests", "test_top1", "best_top1", "reallocations", "steps")
    same = {key: ours[key] == theirs[key] for key in keys}
    return {**same, "metrics": runs.metrics(actual) == runs.metrics(expected)}


def table(result: Result) -> str:
    """Write what the run lived through."""
    seconds = {kind: [one["seconds"] for one in result["faults"] if one["kind"] == kind] for kind in KINDS}
    return filled("soak", result, seconds={kind: found for kind, found in seconds.items() if found}, median=median)


def unmount_when_stopped() -> None:
    """End on SIGTERM as on an error. Processes forked from this one, as pyroute2 forks them, just end with it."""
    me = os.getpid()

    def end(*_: object) -> None:
        if os.getpid() != me:
            os._exit(1)
        sys.exit("error: stopped")

    signal.signal(signal.SIGTERM, end)


def main() -> None:
    asked = parse()
    if reason := why_not():
        raise SystemExit(f"error: no hosts with storage can be had here: {reason}")
    unmount_when_stopped()
    with TemporaryDirectory() as name:
        result = measure(Path(name), asked)
    whole = asked.kinds == [*KINDS] and asked.faults >= MANY and asked.epochs >= EPOCHS
    kept = keep_whole("soak", result, asked.output, whole)
    print(table(result), kept, sep="\n")
    if not all(result["equal"].values()):
        raise SystemExit("error: the run is another than the one without faults")
    if any(fault["broken"] for fault in result["faults"]) or any(result["exit_codes"]):
        raise SystemExit(f"error: a promise was broken, see above; the run ended with {result['exit_codes']}")


def parse() -> Namespace:
    parser = plain_parser(__doc__)
    parser.add_argument("--faults", type=at_least_1, default=MANY, help=f"in all ({MANY})")
    parser.add_argument("--kinds", default=",".join(KINDS), help="some of them, with commas between")
    parser.add_argument("--epochs", type=at_least_1, default=EPOCHS, help=f"of the run ({EPOCHS})")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.kinds = asked.kinds.split(",")
    if unknown := sorted({*asked.kinds} - {*KINDS}):
        parser.error(f"--kinds names {', '.join(unknown)}; there are {', '.join(KINDS)}")
    return asked


def measure(folder: Path, asked: Namespace) -> Result:
    whole = undisturbed(folder, asked.epochs)
    chosen = [asked.kinds[i % len(asked.kinds)] for i in range(asked.faults)]
    happened, counts = soak(folder, chosen, asked.epochs, asked.seed)
    run = folder / "runs" / "soak"
    steps, equal = runs.summary(run)["steps"], compare(run, whole)
    return {"faults": [asdict(fault) for fault in happened], **counts, "steps": steps, "equal": equal}


if __name__ == "__main__":
    main()
