"""The end of a run before its last epoch, because it no longer gets better."""

from __future__ import annotations

from dynsparse.config.sections import TrainSettings
from dynsparse.training.progress import Progress


def is_evaluated(train: TrainSettings, epoch: int) -> bool:
    """Whether an epoch, counted from 0, is followed by an evaluation. The last one always is."""
    return (epoch + 1) % train.evaluate_every_epochs == 0 or epoch + 1 == train.epochs


def lacks_evaluation(progress: Progress) -> bool:
    """Whether the network of now is not evaluated. Older checkpoints do not say when they were; they were at an end."""
    is_older = progress.evaluated_at is None and progress.best_top1 is not None
    return progress.evaluated_at != progress.step and not is_older


def early_end(train: TrainSettings, progress: Progress) -> str | None:
    """Return why a run ends early, None if it goes on. It depends on the checkpoint and the config alone."""
    patience, best = train.early_stop.patience, progress.best_top1
    if patience is None or best is None or progress.epoch >= train.epochs or progress.idle_evaluations < patience:
        return None
    margin = f" by more than {train.early_stop.improvement:g} points" if train.early_stop.improvement else ""
    times = f"{progress.idle_evaluations} evaluation{'s' * (progress.idle_evaluations > 1)}"
    return (
        f"early stop after epoch {progress.epoch}: {progress.best_top1_on} top-1 has not risen{margin} in {times}; the "
        f"best is {best:.2f} %"
    )
