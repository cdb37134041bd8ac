"""Progress of a run. A checkpoint holds it, and it is validated as it is read."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from dynsparse.training.evaluate import Evaluations

Count = Annotated[int, Field(ge=0, lt=1 << 62)]


class Progress(BaseModel):
    """Counts and best results up to now, the same on every rank."""

    model_config = ConfigDict(strict=True, extra="ignore")

    epoch: Count = 0
    """Epochs trained and evaluated."""
    step: Count = 0
    """Optimizer steps done."""
    best_top1: float | None = None
    """Highest of all epochs, on the validation samples where there are any, else on the test samples."""
    test_top1_at_best: float | None = None
    test_top1: float | None = None
    test_top5: float | None = None
    validation_top1: float | None = None
    reallocations: Count = 0
    desyncs_repaired: Count = 0
    skipped_steps: Count = 0
    """Steps whose loss or gradients were NaN or infinite, among them those in search of fp16's scale."""
    skipped_in_a_row: Count = 0
    """Latest steps that were skipped; 0 after one that was not."""
    bad_steps_in_a_row: Count = 0
    """Skipped steps among the latest for which the scale was not to blame."""
    gradients: str = ""
    """Gradients that the ranks exchange, "active" or "dense", as it was asked for or chosen."""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Time spent up to the latest save, on rank 0's clock."""
    initial_active: dict[str, Count] = Field(default_factory=dict)
    """Active weights of each layer at the start."""

    @property
    def best_top1_on(self) -> str | None:
        """Samples that have chosen the best epoch, "validation" or "test"; None without one."""
        if self.best_top1 is None:
            return None
        return "test" if self.validation_top1 is None else "validation"

    def step_done(self) -> None:
        """Note a step that updated weights."""
        self.skipped_in_a_row = self.bad_steps_in_a_row = 0

    def step_skipped(self, *, bad: bool) -> None:
        """Count a step that was skipped. It is `bad` unless only the loss scale was to blame."""
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        self.bad_steps_in_a_row += bad

    def take(self, results: Evaluations, *, eligible: bool = True) -> bool:
        """Note what an epoch reached. Returns whether it is the best so far; it cannot be if not `eligible`."""
        is_best = eligible and (self.best_top1 is None or results.selecting.top1 > self.best_top1)
        if is_best:
            self.best_top1 = results.selecting.top1
            self.test_top1_at_best = results.test.top1 if results.test else None
        self.test_top1, self.test_top5 = (results.test.top1, results.test.top5) if results.test else (None, None)
        self.validation_top1 = results.validation.top1 if results.validation else None
        return is_best
