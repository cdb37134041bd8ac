"""The time of a run, in optimizer steps, as methods read it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Progress of training after an optimizer step."""

    step: int
    """Optimizer steps done, over the whole run."""
    epoch: int
    """Counted from 0."""
    steps_per_epoch: int = 1
    epochs: int = 1
    """Epochs of the whole run."""
    total_steps: int | None = None
    """Steps of the whole run, where it does not end with an epoch."""

    @property
    def ends_epoch(self) -> bool:
        """Whether this step was the last of its epoch."""
        return self.step == (self.epoch + 1) * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Fraction of the run that is done, 0 to 1."""
        return min(1.0, self.step / (self.total_steps or self.epochs * self.steps_per_epoch))


@dataclass(frozen=True)
class Schedule:
    """Lengths of a run and of its epochs, in optimizer steps. It makes the clock of each step."""

    total_steps: int
    steps_per_epoch: int | None = None
    """Steps of an epoch. None: the run is one epoch."""

    def clock(self, step: int) -> Clock:
        """Clock after the step with this number, counted from 1."""
        per_epoch = self.steps_per_epoch or self.total_steps
        epochs = math.ceil(self.total_steps / per_epoch)
        return Clock(step, max(0, step - 1) // per_epoch, per_epoch, epochs, self.total_steps)
