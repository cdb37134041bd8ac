"""Outcomes of steps: made, or skipped because the loss or gradients were NaN or inf.

A GPU knows the outcome long after the host has queued the step. So the host may leave it open, go on, and read it when
the passes of the next step are queued: the GPU has work then, and does not stand still while the host waits.
"""

from __future__ import annotations

import logging

from torch import Tensor

from dynsparse.errors import DivergedError
from dynsparse.later import Later
from dynsparse.training.precision import Outcome
from dynsparse.training.state import RunState

log = logging.getLogger(__name__)


class Outcomes:
    """Count of the steps that were skipped, in the run's progress. That of the latest step may be open."""

    def __init__(self, run: RunState) -> None:
        self.run = run
        self._open: tuple[int, Later] | None = None

    @property
    def can_stay_open(self) -> bool:
        """Whether training goes on whatever the outcome of a step: if it is bad, it is not the last that may be.

        Steps that follow a skipped one are not left open.
        """
        return self.run.config.train.max_bad_steps > 1 and not self.run.progress.skipped_in_a_row

    def leave_open(self, outcome: Tensor) -> None:
        """Leave the outcome of the latest step, a scalar on the device, to be read by `catch_up`."""
        self._open = self.run.progress.step, Later(outcome)

    def catch_up(self) -> None:
        """Count the step that was left open, if one was. Waits until the device has found its gradients good or bad."""
        if self._open is not None:
            (step, outcome), self._open = self._open, None
            found = Outcome(outcome.read())
            if found and self.run.ema is not None:
                self.run.ema.forget(step)
            self.note(step, found)

    def note(self, step: int, outcome: Outcome) -> None:
        """Count the step with this number. DivergedError if too many in a row were bad."""
        progress, most = self.run.progress, self.run.config.train.max_bad_steps
        if outcome is Outcome.MADE:
            progress.step_done()
            return
        progress.step_skipped(bad=outcome is Outcome.BAD)
        if outcome is Outcome.BAD:
            log.warning("step %d skipped: its loss or gradients are NaN or inf", step)
        if progress.bad_steps_in_a_row >= most:
            raise DivergedError(
                f"the loss or gradients of {most} steps in a row, the last of them step {step}, are NaN or "
                f"inf (train.max_bad_steps): training has diverged; lower the learning rate and begin anew with "
                f"--overwrite, or resume from a checkpoint from well before"
            )
