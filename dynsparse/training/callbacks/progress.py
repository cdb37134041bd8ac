"""Progress for people: a bar where there is a terminal, plain lines where there is none."""

from __future__ import annotations

import logging
import sys
import time
from typing import Literal

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks.base import (
    Callback,
    Display,
    EpochReport,
    RunReport,
    StepReport,
    Summary,
)
from dynsparse.training.evaluate import Evaluations

log = logging.getLogger(__name__)


def progress(style: Literal["auto", "bar", "lines", "none"]) -> list[Callback]:
    """Return the observer for this style; `auto` looks whether stderr is a terminal."""
    if style == "none":
        return []
    return [ProgressBar() if style == "bar" or (style == "auto" and sys.stderr.isatty()) else ProgressLines()]


def _accuracies(results: Evaluations) -> dict[str, str]:
    """Return top-1 accuracies by the name of the split."""
    found = {"validation": results.validation, "test": results.test}
    if results.ema is not None:
        found |= {"ema validation": results.ema.validation, "ema test": results.ema.test}
    return {name: f"{on.top1:.2f} %" for name, on in found.items() if on is not None}


class ProgressLines(Display):
    """A line an epoch through `logging`, with the time that is left."""

    def on_start(self, run: RunReport) -> None:
        self._run = run
        self._began = time.monotonic()

    def on_epoch(self, report: EpochReport) -> None:
        work = self._run.work
        done = work(report.step) - work(self._run.start_step)
        left = work(self._run.steps) - work(report.step)
        eta = (time.monotonic() - self._began) / done * left if done else None
        speed = report.images_per_second
        log.info(
            "epoch %d/%d  step %d  loss %.4f  train %.2f %%  %s  lr %.3g  %s images/s  ETA %s",
            report.epoch + 1,
            self._run.epochs,
            report.step,
            report.train_loss,
            report.train_top1,
            "  ".join(f"{name} {value}" for name, value in _accuracies(report.results).items()),
            report.lr,
            "?" if speed is None else f"{speed:.0f}",
            "?" if eta is None else tqdm.format_interval(eta),
        )


class ProgressBar(Display):
    """A bar over all steps with ETA; log lines are printed above it."""

    def on_start(self, run: RunReport) -> None:
        self._redirect = logging_redirect_tqdm()
        self._redirect.__enter__()
        self._bar = tqdm(total=run.steps, initial=run.start_step, desc=run.name, unit="step", dynamic_ncols=True)
        self._shown: dict[str, str] = {}

    def on_step(self, report: StepReport) -> None:
        self._show(report.step, loss=f"{report.loss:.4f}", lr=f"{report.lr:.3g}")

    def on_reallocation(self, report: ReallocationReport) -> None:
        self._show(report.step, moved=str(sum(report.dropped.values())))

    def on_epoch(self, report: EpochReport) -> None:
        self._show(report.step, epoch=str(report.epoch + 1), **_accuracies(report.results))

    def on_end(self, summary: Summary) -> None:
        try:
            self._show(summary.steps)
            self._bar.close()
        finally:
            self._redirect.__exit__(None, None, None)

    def _show(self, step: int, **values: str) -> None:
        self._shown.update(values)
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(step - self._bar.n)
