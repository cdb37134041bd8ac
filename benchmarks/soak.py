"""Faults without end: one training run over two hosts, through thirty of them at random moments.

    python -m benchmarks.soak [--faults 30] [--seed 0]

The hosts are network namespaces of this machine (tests/hosts.py; needs root), one worker each, joined by a link that
is slow on purpose, so that steps take long enough to be hit. Faults, in random order and equal shares:

    kill     a worker gets SIGKILL; torchrun starts all workers again
    stop     torchrun gets SIGTERM on both hosts, as when a cluster takes its machines back; the job is queued again
    link     the second host's link is down for 5 to 25 s, where workers wait 10 s for each other
    damage   the newest checkpoint is cut short or a bit of it flips, then a worker gets SIGKILL

A torchrun that gives up is started again with the same command, as Slurm or Kubernetes would. In the end weights,
masks and metrics are compared with a run of the same config that nobody disturbed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.record import keep
from tests.hosts import ROOT, Hosts, why_not
from tests.training import runs

KINDS = ("kill", "stop", "link", "damage")
RATE = "5mbit"
MOST_STEPS_BETWEEN = 20
PATIENCE_SECONDS = 300
RESTARTS = 1000  # torchrun counts over a launch's whole life.


@dataclass
class Fault:
    """One fault, and what came of it."""

    kind: str
    step: int
    """Of the newest checkpoint when it struck."""
    detail: str
    seconds: float = 0.0
    """Until the run was beyond it: a later step saved."""


class Run:
    """A training run over two hosts that is kept alive."""

    def __init__(self, hosts: Hosts, folder: Path, epochs: int) -> None:
        self.hosts = hosts
        self.folder = folder / "runs" / "soak"
        self.command = [ROOT / "dist_train.py", *options(folder / "runs", "soak", epochs), "--resume", "auto"]
        self.log = folder / "log"
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.started = 0

    def keep_alive(self) -> None:
        """Start what is not running."""
        for number in (0, 1):
            process = self.processes.get(number)
            if process is None or process.poll() not in (None, 0):
                self.started += 1
                self.processes[number] = self.hosts.torchrun(
                    number, *self.command, restarts=RESTARTS, log=self.log.with_suffix(f".{number}")
                )

    @property
    def is_over(self) -> bool:
        return (self.folder / "summary.json").exists() and self.summary()["status"] == "done"

    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return content

    def newest(self) -> Path | None:
        return max((self.folder / "checkpoints").glob("step-*.pt"), default=None)

    def step(self) -> int:
        newest = self.newest()
        return -1 if newest is None else int(newest.stem.removeprefix("step-"))

    def until(self, what: Callable[[], bool]) -> None:
        """Until it holds or the run is over. SystemExit with the end of the logs if nothing goes on for long."""
        latest, since = self.step(), time.monotonic()
        while not what() and not self.is_over:
            self.keep_alive()
            if (step := self.step()) != latest:
                latest, since = step, time.monotonic()
            if time.monotonic() - since > PATIENCE_SECONDS:
                raise SystemExit(f"error: no progress in {PATIENCE_SECONDS} s\n{self.said()[-5000:]}")
            time.sleep(0.02)

    def said(self) -> str:
        return "".join(path.read_text() for number in (0, 1) if (path := self.log.with_suffix(f".{number}")).exists())

    def workers(self) -> list[int]:
        """Process numbers, as this machine counts."""
        found = []
        for process in self.processes.values():
            for torchrun in runs.children(process.pid):
                found += runs.children(torchrun)
        return found

    def end(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def options(folder: Path, name: str, epochs: int) -> list[str]:
    # Dense: the choice of `auto` would be the clock's, and the link is to be slow for its burst to be used up.
    return [
        *("--config", str(ROOT / "configs/digits_dsr.yaml"), f"runs={folder}", f"name={name}"),
        *(f"train.epochs={epochs}", "checkpoint.every_steps=1", "checkpoint.keep=3", "log.progress=none"),
        *("distributed.timeout_seconds=10", "distributed.gradients=dense"),
    ]


def strike(run: Run, kind: str, chance: random.Random) -> str:
    """Do it, and say what was done."""
    if kind == "stop":
        for process in run.processes.values():
            for torchrun in runs.children(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(torchrun, signal.SIGTERM)
        for process in run.processes.values():
            process.wait()
        return f"torchrun ended with {sorted(str(process.returncode) for process in run.processes.values())}"
    if kind == "link":
        seconds = chance.uniform(5, 25)
        run.hosts.link_down(1)
        time.sleep(seconds)
        run.hosts.link_up(1)
        return f"{seconds:.1f} s"
    detail = damage(run, chance) if kind == "damage" else ""
    workers = run.workers()
    if not workers:
        return f"{detail}no worker to kill"
    os.kill(chance.choice(workers), signal.SIGKILL)
    return f"{detail}a worker of {len(workers)} killed"


def damage(run: Run, chance: random.Random) -> str:
    newest = run.newest()
    if newest is None:
        return ""
    content = bytearray(newest.read_bytes())
    if chance.random() < 0.5:
        cut = chance.randrange(len(content))
        newest.write_bytes(content[:cut])
        return f"{newest.name} cut to {cut} of {len(content)} bytes, "
    # Any byte from the middle third, which tensors fill: the gaps of a zip archive hold nothing.
    place = chance.randrange(len(content) // 3, 2 * len(content) // 3)
    content[place] ^= 1 << chance.randrange(8)
    newest.write_bytes(content)
    return f"{newest.name} bit {place} flipped, "


def soak(folder: Path, faults: int, epochs: int, seed: int) -> tuple[list[Fault], dict[str, Any]]:
    chance = random.Random(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(faults)]
    chance.shuffle(kinds)
    happened: list[Fault] = []
    with Hosts(2, rate=RATE) as hosts:
        run = Run(hosts, folder, epochs)
        try:
            for kind in kinds:
                goal = run.step() + chance.randint(1, MOST_STEPS_BETWEEN)
                run.until(lambda goal=goal: run.step() >= goal)  # type: ignore[misc]
                if run.is_over:
                    raise SystemExit(f"error: the run ended after {len(happened)} faults; give it more --epochs")
                fault = Fault(kind, run.step(), "")
                began = time.monotonic()
                fault.detail = strike(run, kind, chance)
                left_at = run.step() if kind == "stop" else fault.step  # A stop saves where it leaves.
                run.until(lambda left_at=left_at: run.step() > left_at)  # type: ignore[misc]
                fault.seconds = round(time.monotonic() - began, 1)
                happened.append(fault)
                print(f"{len(happened):3} {fault.kind:7} step {fault.step:5} {fault.seconds:6.1f} s {fault.detail}")
                sys.stdout.flush()
            run.until(lambda: False)
        finally:
            run.end()
        said = run.said()
    counts = {
        "starts_of_torchrun": run.started,
        "resumes": said.count("resuming from"),
        "damaged_checkpoints_passed_over": said.count(": damaged"),
    }
    return happened, counts


def undisturbed(folder: Path, epochs: int) -> Path:
    """The same run by two workers of this machine. Returns its folder."""
    done = runs.dist_train(*options(folder / "runs", "whole", epochs), workers=2)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "whole"


def compare(actual: Path, expected: Path) -> dict[str, bool]:
    ours, theirs = runs.summary(actual), runs.summary(expected)
    keys = ("weight_digest", "mask_digest", "rank_digests", "test_top1", "best_top1", "reallocations", "steps")
    same = {key: ours[key] == theirs[key] for key in keys}
    return {**same, "metrics": runs.metrics(actual) == runs.metrics(expected)}


def table(result: dict[str, Any]) -> str:
    """What the run lived through, in Markdown."""
    lines = ["| fault | times | seconds until a later step was saved: median | most |", "| --- | --- | --- | --- |"]
    for kind in KINDS:
        seconds = [fault["seconds"] for fault in result["faults"] if fault["kind"] == kind]
        if seconds:
            lines.append(f"| {kind} | {len(seconds)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |")
    different = [key for key, equal in result["equal"].items() if not equal]
    verdict = f"other than there: {', '.join(different)}" if different else "all the same, to the bit"
    told = (
        f"{len(result['faults'])} faults in a run of {result['steps']} steps; it resumed {result['resumes']} times and "
        f"passed over a damaged checkpoint {result['damaged_checkpoints_passed_over']} times; torchrun was started "
        f"{result['starts_of_torchrun']} times on the two hosts. Weights, masks, accuracy and every line of "
        f'metrics.jsonl (but for its "timing") beside those of a run without faults: {verdict}.'
    )
    return "\n".join([*lines, "", told])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder for the JSON, instead of benchmarks/results")
    arguments = parser.parse_args()
    if reason := why_not():
        raise SystemExit(f"error: no hosts can be had here: {reason}")
    with TemporaryDirectory() as name:
        folder = Path(name)
        whole = undisturbed(folder, arguments.epochs)
        happened, counts = soak(folder, arguments.faults, arguments.epochs, arguments.seed)
        same = compare(folder / "runs" / "soak", whole)
        summary = runs.summary(folder / "runs" / "soak")
    result = {"faults": [asdict(fault) for fault in happened], **counts, "steps": summary["steps"], "equal": same}
    keep("soak", "python -m benchmarks.soak", result, arguments.output)
    print(table(result))
    if not all(same.values()):
        raise SystemExit("error: the run is another than the one without faults")


if __name__ == "__main__":
    main()
