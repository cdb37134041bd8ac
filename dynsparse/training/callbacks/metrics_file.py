"""metrics.jsonl: a line an epoch and a line a reallocation, for programs to read."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks.base import Callback, EpochReport, RunReport
from dynsparse.training.evaluate import Evaluation


class MetricsFile(Callback):
    """Appends to the file; a resume first cuts off what was written after its checkpoint.

    What depends on the clock stands under "timing", all else is the same in
    every repetition of a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, run: RunReport) -> None:
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(line for line in lines if _is_before(line, run)))
        os.replace(partial, self.path)

    def on_reallocation(self, report: ReallocationReport) -> None:
        self._append(
            {
                "kind": "reallocation",
                "step": report.step,
                "epoch": report.epoch,
                "dropped": sum(report.dropped.values()),
                "grown": sum(report.grown.values()),
                **report.scalars,
                "layers": {
                    name: {
                        "dropped": report.dropped[name],
                        "grown": report.grown[name],
                        "active": report.active[name],
                        "explored": report.explored[name],
                    }
                    for name in report.active
                },
                "repaired": list(report.repaired),
                "timing": {"seconds": report.seconds},
            }
        )

    def on_epoch(self, report: EpochReport) -> None:
        self._append(
            {
                "kind": "epoch",
                "epoch": report.epoch,
                "step": report.step,
                "lr": report.lr,
                "train_loss": report.train_loss,
                "train_top1": report.train_top1,
                **_numbers("test", report.results.test),
                **_numbers("validation", report.results.validation),
                **_numbers("train_evaluation", report.results.train),
                "best_top1": report.best_top1,
                "budget": report.budget,
                "active_weights": sum(report.active.values()),
                "sparsity": report.total_sparsity,
                "model_sparsity": report.model_sparsity,
                "bad_files": report.bad_files,
                "skipped_steps": report.skipped_steps,
                "layers": {
                    name: {
                        "active": report.active[name],
                        "sparsity": report.sparsity[name],
                        **({"explored": report.explored[name]} if name in report.explored else {}),
                    }
                    for name in report.active
                },
                "timing": {
                    "images_per_second": report.images_per_second,
                    "seconds": report.seconds,
                    "gradient_bytes_per_step": report.gradient_bytes,
                },
            }
        )

    def _append(self, line: dict[str, Any]) -> None:
        whole = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(_finite(line), allow_nan=False) + "\n")
        except OSError:
            os.truncate(self.path, whole)  # No half lines: the next may find space again.
            raise


def _numbers(name: str, result: Evaluation | None) -> dict[str, float]:
    if result is None:
        return {}
    numbers = {f"{name}_loss": result.loss, f"{name}_top1": result.top1, f"{name}_top5": result.top5}
    return {**numbers, f"{name}_left_out": result.left_out} if result.left_out else numbers


def _is_before(text: str, run: RunReport) -> bool:
    """Whether a line tells of something before the point where the run goes on."""
    try:
        line = json.loads(text)
    except ValueError:  # Cut off by a kill in the middle of writing.
        return False
    return bool(line["epoch"] < run.start_epoch if line["kind"] == "epoch" else line["step"] <= run.start_step)


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null instead."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
