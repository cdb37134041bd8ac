"""The faults of benchmarks/soak.py: each does what its name says to a run, and says what was done.

They raise nothing where the run breaks a promise, but note it: what comes of it is of interest too.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.parts.soak.run import Launch, Run
from dynsparse.errors import EXIT_FAULT, EXIT_STOPPED
from dynsparse.training.run.timing import STALE_SECONDS

ENDINGS = ("stopped", "held", "training")
"""States of the second launch when the first wakes: stopped, held still meanwhile, or training on."""


@dataclass
class Fault:
    """One fault, and what came of it."""

    kind: str
    step: int
    """Step of the newest checkpoint when it struck."""
    detail: str = ""
    seconds: float = 0.0
    """Seconds until the run was beyond it: a later step saved."""
    broken: list[str] = field(default_factory=list)
    """Promises that did not hold."""


class Draws:
    """Decisions of chance. Where a fault has variants, all of them come up equally often."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self._variants: dict[str, Iterator[Any]] = {}

    def variant(self, kind: str, *choices: Any) -> Any:
        if kind not in self._variants:
            self._variants[kind] = itertools.cycle(self.chance.sample(choices, len(choices)))
        return next(self._variants[kind])


def kill(run: Run, draws: Draws, fault: Fault) -> None:
    """Send SIGKILL to a worker."""
    workers = run.workers()
    if workers:
        os.kill(draws.chance.choice(workers), signal.SIGKILL)
    fault.detail += f"a worker of {len(workers)} killed" if workers else "no worker to kill"


def stop(run: Run, draws: Draws, fault: Fault) -> None:
    """Send SIGTERM to torchrun on both hosts."""
    run.stop()
    fault.detail = f"torchrun ended with {sorted(str(process.returncode) for process in run.processes.values())}"


def link(run: Run, draws: Draws, fault: Fault) -> None:
    """Take the second host's link down for a while."""
    seconds = draws.chance.uniform(5, 25)
    run.hosts.link_down(1)
    time.sleep(seconds)
    run.hosts.link_up(1)
    fault.detail = f"{seconds:.1f} s"


def damage(run: Run, draws: Draws, fault: Fault) -> None:
    """Cut the newest checkpoint short or flip a bit of it, then kill a worker."""
    newest, chance = run.newest(), draws.chance
    assert newest is not None
    content = bytearray(newest.read_bytes())
    if chance.random() < 0.5:
        cut = chance.randrange(len(content))
        newest.write_bytes(content[:cut])
        fault.detail = f"{newest.name} cut to {cut} of {len(content)} bytes, "
    else:
        # Any byte from the middle third, which tensors fill: the gaps of a zip archive hold nothing.
        place = chance.randrange(len(content) // 3, 2 * len(content) // 3)
        content[place] ^= 1 << chance.randrange(8)
        newest.write_bytes(content)
        fault.detail = f"{newest.name} bit {place} flipped, "
    kill(run, draws, fault)


def full(run: Run, draws: Draws, fault: Fault) -> None:
    """Leave the storage no free byte for a while."""
    _outage(run, draws, fault, run.storage.full())


def readonly(run: Run, draws: Draws, fault: Fault) -> None:
    """Make the storage read-only for a while."""
    _outage(run, draws, fault, run.storage.read_only(run.hosts[0], run.hosts[1]))


def gone(run: Run, draws: Draws, fault: Fault) -> None:
    """Unmount the storage for a while."""
    _outage(run, draws, fault, run.storage.gone(run.hosts[0], run.hosts[1]))


def _outage(run: Run, draws: Draws, fault: Fault, of_storage: AbstractContextManager[None]) -> None:
    """Make an outage of 3 to 15 s. In half of them a worker is killed meanwhile."""
    seconds, part = draws.chance.uniform(3, 15), draws.chance.uniform(0.2, 0.8)
    fault.detail = f"{seconds:.1f} s"
    with of_storage:
        time.sleep(seconds * part)
        if draws.variant(fault.kind, True, False):
            fault.detail += ", "
            kill(run, draws, fault)
        time.sleep(seconds * (1 - part))


def suspend(run: Run, draws: Draws, fault: Fault) -> None:
    """Hold the launch that has the folder still until another has taken over, and wake it again.

    The run over two hosts is stopped for it, and started on one after the other: where workers on another host wait
    for those that stand still, these would find the connection closed as they wake, and end for that reason.
    """
    ending = draws.variant("suspend", *ENDINGS)
    run.stop()
    first = run.launch(0)
    if not _trains(run, first, draws.chance.randint(1, 5)):
        fault.broken.append(f"the first launch does not train:\n{first.said()}")
        return
    first.stand_still()
    began = time.monotonic()
    second = run.launch(1)
    left_at = run.step()
    if not _trains(run, second, draws.chance.randint(1, 10)):
        fault.broken.append(f"the second launch does not take over:\n{second.said()}")
        return
    if ending == "stopped":
        _end(second, fault)
    elif ending == "held":
        second.stand_still()
    time.sleep(max(0.0, began + STALE_SECONDS + 1 - time.monotonic()))
    seconds = time.monotonic() - began
    before = run.content()
    first.wake()
    _look_at_the_first(run, first, fault)
    if ending != "training" and (after := run.content()) != before:
        names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        fault.broken.append(f"the first launch has changed {', '.join(names)}")
    if ending == "held":
        second.wake()
    if ending != "stopped":
        at = run.step()
        run.until(lambda: run.step() > at or second.process.poll() is not None, alive=False)
        _end(second, fault)
    fault.detail = f"{seconds:.1f} s at step {left_at}; the other, {ending}, came to step {run.step()}"


def _trains(run: Run, launch: Launch, steps: int) -> bool:
    """Wait for so many steps more. Returns whether they were saved."""
    goal = run.step() + steps
    run.until(lambda: run.step() >= goal or launch.process.poll() is not None, alive=False)
    return run.step() >= goal


def _look_at_the_first(run: Run, first: Launch, fault: Fault) -> None:
    code, said = first.wait(), first.said()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if code != EXIT_FAULT:
        fault.broken.append(f"the first launch ended with {code}")
    taken = f"error: {run.storage.path / 'soak'} was taken over by process "
    if sum(line.startswith(taken) for line in errors) != 1:  # Then the other worker and the launcher speak of its end.
        fault.broken.append(f"the first launch said {errors}")
    if fault.broken:
        fault.broken.append(said[-5000:])


def _end(launch: Launch, fault: Fault) -> None:
    launch.ask_to_stop()
    if (code := launch.wait()) != EXIT_STOPPED:
        fault.broken.append(f"the second launch ended with {code}:\n{launch.said()[-5000:]}")


FAULTS: Mapping[str, Callable[[Run, Draws, Fault], None]] = {
    "kill": kill,
    "stop": stop,
    "link": link,
    "damage": damage,
    "full": full,
    "readonly": readonly,
    "gone": gone,
    "suspend": suspend,
}
