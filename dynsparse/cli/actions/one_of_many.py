"""`--rehearse`: tell what a worker of many would hold, get and send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dynsparse.cli.actions.base import Action, Rule, require_device_of, start_rules
from dynsparse.config.own_file import told
from dynsparse.distributed.rehearsing import Sent
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.rehearsal import Rehearsal, rehearse

EPOCHS = ("first epoch", "second epoch")
FEW = 8
"""Samples of a step that are shown."""
MEMORY = "memory is that of the trainer built here; what a forward pass keeps is counted on shapes, without computing"


@dataclass(frozen=True)
class OneOfMany(Action):
    """Go through a run's first steps as one of many workers, with the others absent. Writes nothing."""

    rank: int
    world_size: int

    @property
    def _worker(self) -> Worker:
        return Worker(self.rank, self.world_size)

    def rules(self, worker: Worker) -> list[Rule]:
        """Return the rules of a start with as many workers."""
        rules = start_rules(self.config, self._worker, None)
        return [lambda: _require_alone(worker), *rules, lambda: require_device_of(self.config, self._worker)]

    def rehearse(self, worker: Worker) -> str:
        """Say which worker it would be."""
        return f"worker {self.rank} of {self.world_size:,} would be rehearsed"

    def run(self, worker: Worker) -> None:
        """Print what the worker holds, gets and sends."""
        with told(self.config.method):
            found = rehearse(self.config, self.rank, self.world_size)
        print("\n".join(lines(found)), flush=True)


def _require_alone(worker: Worker) -> None:
    if worker.under_torchrun:
        raise UserError("--rehearse is for one process; start it without torchrun")


def lines(found: Rehearsal) -> list[str]:
    """Return the table of a rehearsal, as lines of Markdown."""
    rows = {
        "samples of each global batch": _share(found),
        **{f"its first samples, {epoch}": _few(numbers) for epoch, numbers in zip(EPOCHS, found.samples, strict=False)},
        "steps of an epoch": f"{found.steps_per_epoch:,}",
        **{f"memory: {name}": _size(size) for name, size in found.memory.items() if size},
        "memory: kept by a forward pass": _activations(found.activations),
        "gradients of a step, active": _size(found.gradients["active"]),
        "gradients of a step, all": _size(found.gradients["dense"]),
        "distributed.gradients": f"{found.chosen}{', here as active' * (found.chosen == 'auto')}",
        "a step without an event": _calls(found.step),
        "an event": "none in this run" if found.event_step is None else f"first at step {found.event_step:,}",
    }
    if found.event_step is not None:
        rows |= {"its plan": _size(found.plan), "a step with an event": _calls(found.event)}
    rows |= {
        "a save": f"{_size(found.state)} to worker 0, which gets {_size(found.state * (found.world_size - 1))}",
        "connections of gloo": f"{found.world_size - 1:,}",
    }
    head = [f"worker {found.rank} of {found.world_size:,}, alone on this machine: no message was sent", MEMORY, ""]
    return [*head, "| what | size |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]


def _share(found: Rehearsal) -> str:
    parts = ", ".join(f"{first} to {first + size - 1}" for first, size in found.share)
    alike = f"each worker {found.most}" if found.fewest == found.most else f"workers {found.fewest} to {found.most}"
    return f"{sum(size for _, size in found.share)} of {found.global_batch:,} (places {parts}); {alike}"


def _few(numbers: Sequence[int]) -> str:
    """Write the first numbers of samples."""
    return ", ".join(map(str, numbers[:FEW])) + ", ..." * (len(numbers) > FEW)


def _activations(found: int | str) -> str:
    return _size(found) if isinstance(found, int) else f"cannot be counted: {found}"


def _calls(sent: Sequence[Sent]) -> str:
    """Write how often each call was made, and with how many bytes in all."""
    calls, sizes = Counter(one.call for one in sent), Counter[str]()
    for one in sent:
        sizes[one.call] += one.bytes
    return ", ".join(f"{count} x {call} ({_size(sizes[call])})" for call, count in calls.items()) or "no call"


def _size(size: int) -> str:
    """Write bytes in the unit that leaves one to three digits before the point."""
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_:
            return f"{size / bytes_:.3g} {unit}"
    return f"{size} bytes"
