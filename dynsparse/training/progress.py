"""Progress of a run. A checkpoint holds it, and it is validated as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dynsparse.config.recipe import BestBy
from dynsparse.training.evaluate import Evaluation, Evaluations

Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Flops = Annotated[int, Field(ge=0, lt=1 << 100)]


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
    evaluated_at: Count | None = None
    """Step after which these figures were measured; checkpoints of older versions do not say it."""
    top1_to_beat: float | None = None
    """Top-1 at the latest evaluation that was better than those before, for an early stop."""
    idle_evaluations: Count = 0
    """Evaluations since then."""
    ema_test_top1: float | None = None
    """Figures of the average of the weights, if there is one."""
    ema_validation_top1: float | None = None
    best_by: BestBy = "model"
    """Network whose accuracy chooses the best epoch."""
    reallocations: Count = 0
    desyncs_repaired: Count = 0
    skipped_steps: Count = 0
    """Steps whose loss or gradients were NaN or infinite, among them those in search of fp16's scale."""
    skipped_in_a_row: Count = 0
    """Latest steps that were skipped; 0 after one that was not."""
    bad_steps_in_a_row: Count = 0
    """Skipped steps among the latest for which the scale was not to blame."""
    owed_event: Annotated[int, Field(ge=1)] | None = None
    """Step whose reallocation the next one makes up for, as its gradients were of no use."""
    bad_files_told: Count = 0
    """Bad training files that the log has told of."""
    gradients: str = ""
    """Gradients that the ranks exchange, "active" or "dense", as it was asked for or chosen."""
    training_flops: Flops = 0
    """FLOPs of all training steps, as papers count them (`Costs.step`); 0 where they cannot be counted."""
    dense_training_flops: Flops = 0
    """FLOPs of as many steps of the dense network."""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Time spent up to the latest save, on rank 0's clock."""
    initial_active: dict[str, Count] = Field(default_factory=dict)
    """Active weights of each layer at the start."""
    ever_active_forecast: Annotated[float, Field(ge=0, le=1)] | None = None
    """Fraction of the weights that the run was to explore, as it was told at the start; None where nobody can tell."""

    @property
    def best_top1_on(self) -> str | None:
        """Samples that have chosen the best epoch, "validation" or "test"; None without one."""
        if self.best_top1 is None:
            return None
        return "test" if self.validation_top1 is None else "validation"

    @property
    def training_flops_of_dense(self) -> float | None:
        """FLOPs of training over those of the dense network; None before the first step that was counted."""
        return self.training_flops / self.dense_training_flops if self.dense_training_flops else None

    def count_flops(self, training: int, dense: int) -> None:
        """Add the FLOPs of a step, and those of a dense one."""
        self.training_flops += training
        self.dense_training_flops += dense

    def step_done(self) -> None:
        """Note a step that updated weights."""
        self.skipped_in_a_row = self.bad_steps_in_a_row = 0

    def step_skipped(self, *, bad: bool) -> None:
        """Count a step that was skipped. It is `bad` unless only the loss scale was to blame."""
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        self.bad_steps_in_a_row += bad

    def take(self, results: Evaluations, *, eligible: bool = True, improvement: float = 0.0) -> bool:
        """Note what an epoch reached, if it was evaluated. Returns whether it is the best so far.

        It cannot be if not `eligible`. Less `improvement` than this counts as none for an early stop.
        """
        if (selecting := results.selecting) is None:
            return False
        is_best = eligible and (self.best_top1 is None or selecting.top1 > self.best_top1)
        if eligible:
            self._note_gain(selecting.top1, improvement)
        if is_best:
            self.best_top1 = selecting.top1
            self.test_top1_at_best = _top1(results.candidate.test)
        self.best_by, self.evaluated_at = results.best_by, self.step
        self.test_top1, self.test_top5 = (results.test.top1, results.test.top5) if results.test else (None, None)
        self.validation_top1 = _top1(results.validation)
        average = results.ema or Evaluations()  # Figures of before are of no network that there is.
        self.ema_test_top1, self.ema_validation_top1 = _top1(average.test), _top1(average.validation)
        return is_best

    def _note_gain(self, top1: float, improvement: float) -> None:
        """Count an evaluation that is no better than the one from which improvement is counted."""
        if self.top1_to_beat is None or top1 > self.top1_to_beat + improvement:
            self.top1_to_beat, self.idle_evaluations = top1, 0
        else:
            self.idle_evaluations += 1


def is_of_now(progress: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's accuracies were measured on its own weights, not at an epoch before.

    Older checkpoints do not say it. Theirs were, unless they were made within an epoch.
    """
    return progress.get("evaluated_at") in (None, progress["step"])


def _top1(result: Evaluation | None) -> float | None:
    return None if result is None else result.top1
