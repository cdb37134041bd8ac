"""metrics.jsonl, read line by line into sequences of bounded length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynsparse.tools.report.binned import Binned, latest
from dynsparse.tools.report.layers import Row, counts, shares, weights_of
from dynsparse.training.run import log_lines
from dynsparse.training.run.log_lines import Damaged
from dynsparse.training.run.log_records import (
    BadLineError,
    metrics_line,
    number,
    numbers,
    own_numbers,
    whole_number,
)

MOST_SHRINKS = 1000
"""Most shrinks that a config can ask for."""


@dataclass(frozen=True)
class Epoch:
    """The numbers of an epoch's line, by name, "timing" among them; NaN where it has null."""

    step: int
    numbers: Mapping[str, float]

    def joined(self, later: Epoch) -> Epoch:
        """Return the later epoch, with what only this one has: not all are evaluated."""
        return Epoch(later.step, {**self.numbers, **later.numbers})


@dataclass(frozen=True)
class Layers:
    """Layers after a step. float64 [layers]; NaN where a number is not known."""

    step: int
    active: Row
    explored: Row


@dataclass(frozen=True)
class Moves:
    """Effect of `events` consecutive reallocations. float64 [layers], in weights."""

    first_step: int
    last_step: int
    events: int
    dropped: Row
    grown: Row
    scalars: Mapping[str, float]
    """The method's numbers at the last of them."""
    seconds: float
    """Duration of all of them together; NaN if it is not known."""

    def joined(self, later: Moves) -> Moves:
        """Return these and the reallocations that follow them as one."""
        return Moves(
            self.first_step,
            later.last_step,
            self.events + later.events,
            self.dropped + later.dropped,
            self.grown + later.grown,
            later.scalars,
            self.seconds + later.seconds,
        )


@dataclass
class Metrics:
    """Content of the file. Sequences are in its order."""

    epochs: Binned[Epoch] = field(default_factory=lambda: Binned(Epoch.joined))
    layers: Binned[Layers] = field(default_factory=lambda: Binned(latest))
    moves: Binned[Moves] = field(default_factory=lambda: Binned(Moves.joined))
    names: tuple[str, ...] = ()
    """Names of the sparse layers."""
    weights: dict[str, int] = field(default_factory=dict)
    """Weights of each layer, active or not; empty before the first epoch's line."""
    flops: dict[str, float] = field(default_factory=dict)
    """FLOPs of each layer on one image at the latest epoch, as far as they are known."""
    dead: dict[str, float] = field(default_factory=dict)
    """Outputs of each layer without an active weight at the latest epoch, as far as they are known."""
    before: Row | None = None
    """Active weights of each layer before the first reallocation that is known, or at the first reading."""
    shrinks: list[Mapping[str, Any]] = field(default_factory=list)
    """Lines of shrinks, as many as a config can ask for at most."""
    repaired: dict[str, int] = field(default_factory=dict)
    """Times that each layer differed between workers and was repaired."""
    damaged: Damaged = field(default_factory=Damaged)
    """Lines that are not what training writes; they are skipped."""
    unfinished: bool = False
    """Tells that the last line was still being written."""

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to show."""
        return not len(self.epochs) and not len(self.layers)

    @property
    def last_step(self) -> int:
        """Last step that the file tells of; 0 if it tells of none."""
        return max(self.epochs[-1].step if len(self.epochs) else 0, self.layers[-1].step if len(self.layers) else 0)

    def take(self, line: Mapping[str, Any]) -> None:
        """Add a record (`metrics_line`). BadLineError, with nothing added, if it does not fit those before."""
        if line["kind"] == "epoch":
            self._take_epoch(line)
        elif line["kind"] == "reallocation":
            self._take_reallocation(line)
        elif line["kind"] == "shrink":
            self._take_shrink(line)

    def _take_shrink(self, line: Mapping[str, Any]) -> None:
        if len(self.shrinks) == MOST_SHRINKS:
            raise BadLineError("more shrinks than a run can have")
        self.shrinks.append(line)

    def _take_epoch(self, line: Mapping[str, Any]) -> None:
        whole = {"epoch": whole_number(line["epoch"]), "step": whole_number(line["step"])}
        dead = {name: number(layer.get("dead_outputs")) for name, layer in line["layers"].items()}
        if known := [count for count in dead.values() if not math.isnan(count)]:
            whole["dead_outputs"] = round(sum(known))
        epoch = Epoch(whole["step"], numbers({**line, **line.get("timing", {}), **whole}))
        weights = {name: weights_of(layer) for name, layer in line["layers"].items()}
        self._take_layers(line, epoch.step)
        self.weights |= {name: count for name, count in weights.items() if count}
        self.flops = {name: number(layer.get("flops")) for name, layer in line["layers"].items()}
        self.dead = dead
        self.epochs.add(epoch)

    def _take_reallocation(self, line: Mapping[str, Any]) -> None:
        step, layers = whole_number(line["step"]), line["layers"]
        dropped, grown = counts(layers, "dropped"), counts(layers, "grown")
        scalars = numbers(own_numbers(line))
        seconds = number(line.get("timing", {}).get("seconds"))
        repaired = [str(name) for name in line.get("repaired", [])]
        self._take_layers(line, step, undo=dropped - grown)
        self.moves.add(Moves(step, step, 1, dropped, grown, scalars, seconds))
        for name in repaired:
            self.repaired[name] = self.repaired.get(name, 0) + 1

    def _take_layers(self, line: Mapping[str, Any], step: int, undo: Row | float = 0.0) -> None:
        """Add a reading. `undo`, added to the layers' active weights, gives those before the record."""
        layers = line["layers"]
        names = tuple(str(name) for name in layers)
        reading = Layers(step, counts(layers, "active"), shares(layers, "explored"))
        if self.names and names != self.names:
            raise BadLineError("other layers than in the lines before")
        if not names:
            return
        self.names = names
        if self.before is None:
            self.before = reading.active + undo
        self.layers.add(reading)


def read_metrics(path: Path) -> Metrics:
    """Read the whole file, however long, in little memory. Text after the last line's end is being written."""
    metrics = Metrics()
    for line in log_lines.read(path, metrics_line):
        if line.unfinished:
            metrics.unfinished = True
        elif line.record is None:
            metrics.damaged.add(line.number)
        else:
            try:
                metrics.take(line.record)
            except BadLineError:
                metrics.damaged.add(line.number)
    return metrics
