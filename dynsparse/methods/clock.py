"""The time of a run, in optimizer steps, as methods read it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from pipelines.common.epochs import EpochTable


@dataclass(frozen=True)
class Clock:
    """Progress of training after an optimizer step."""

    step: int
    """Optimizer steps done, over the whole run."""
    epoch: int
    """Counted from 0."""
    steps_per_epoch: int = 1
    """Steps of this epoch."""
    epochs: int = 1
    """Epochs of the whole run."""
    total_steps: int | None = None
    """Steps of the whole run, where it does not end with an epoch."""

    before: int | None = None
    """Steps of the epochs before this one, where epochs differ in length. None: all are as long as this one."""

    @property
    def epoch_steps(self) -> int:
        """Steps done in this epoch."""
        return self.step - (self.epoch * self.steps_per_epoch if self.before is None else self.before)

    @property
    def ends_epoch(self) -> bool:
        """Whether this step was the last of its epoch."""
        return self.epoch_steps == self.steps_per_epoch

    @property
    def whole_epochs(self) -> int:
        """Epochs that are done from their first step to the last."""
        return self.epoch + self.ends_epoch

    @property
    def ends_run(self) -> bool:
        """Whether this step was the last of the run, or one beyond it."""
        return self.step >= (self.total_steps or self.epochs * self.steps_per_epoch)

    @property
    def progress(self) -> float:
        """Fraction of the run that is done, 0 to 1: of its epochs where they differ in length, else of its steps."""
        if self.before is not None:
            return min(1.0, (self.epoch + self.epoch_steps / self.steps_per_epoch) / self.epochs)
        return min(1.0, self.step / (self.total_steps or self.epochs * self.steps_per_epoch))


@dataclass(frozen=True)
class Schedule:
    """Lengths of a run and of its epochs, in optimizer steps. It makes the clock of each step."""

    total_steps: int
    steps_per_epoch: int | EpochTable | None = None
    """Steps of an epoch. None: the run is one epoch."""

    @cached_property
    def table(self) -> EpochTable:
        """Steps of each epoch."""
        given = self.steps_per_epoch
        return given if isinstance(given, EpochTable) else EpochTable.of(given or self.total_steps)

    def clock(self, step: int) -> Clock:
        """Clock after the step with this number, counted from 1."""
        table, last = self.table, self.total_steps - 1
        epoch = table.epoch_of(step - 1)
        if table.varies:
            return Clock(
                step, epoch, table.steps(epoch), table.epoch_of(last) + 1, self.total_steps, table.before(epoch)
            )
        per_epoch = table.steps(epoch)
        return Clock(step, epoch, per_epoch, math.ceil(self.total_steps / per_epoch), self.total_steps)

    @property
    def said(self) -> str:
        """The length of an epoch, for messages: " (10 to 20 an epoch)". Empty where the run is one epoch."""
        if self.steps_per_epoch is None:
            return ""
        lengths = [steps for first, steps in self.table.points if self.table.before(first) < self.total_steps]
        return f" ({' to '.join(map(str, sorted({min(lengths), max(lengths)})))} an epoch)"
