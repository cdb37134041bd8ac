"""The curves of the page, and where their values come from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dynsparse.tools.report.charts.lines import Curve, lines
from dynsparse.tools.report.charts.svg import Chart
from dynsparse.tools.report.run import Run


class Wanted(NamedTuple):
    """A chart over epochs."""

    title: str
    key: str
    log: bool = False
    if_not: float | None = None
    """Skip the chart where no run has another value than this."""
    decades: float = math.inf
    """Powers of ten below the most that are shown: what is lower falls below the chart."""
    is_error: bool = False
    """Show 100 minus the value: then what is left to gain can be seen near the top too."""


EPOCHS = (
    Wanted("train loss", "train_loss", log=True),
    Wanted("test loss", "test_loss", log=True),
    Wanted("test top-1, %", "test_top1"),
    Wanted("test error, %", "test_top1", log=True, is_error=True),
    Wanted("validation top-1, %", "validation_top1"),
    Wanted("train top-1, %", "train_top1"),
    Wanted("learning rate", "lr", log=True, decades=4),  # A cosine ends at nearly 0.
    Wanted("norm of the gradients before clipping, mean of an epoch", "gradient_norm", log=True),
    Wanted("images a second", "images_per_second"),
    Wanted("gradient bytes a step, each worker", "gradient_bytes_per_step", if_not=0),
    Wanted("outputs without a weight", "dead_outputs", if_not=0),
    Wanted("steps skipped so far", "skipped_steps", if_not=0),
    Wanted("bad files so far", "bad_files", if_not=0),
    Wanted("test top-1 of the averaged weights, %", "ema_test_top1"),
    Wanted("validation top-1 of the averaged weights, %", "ema_validation_top1"),
)
CHANGING = (
    ("sparsity of the sparse layers", "sparsity"),
    ("weights ever active, fraction", "ever_active"),
    ("FLOPs of inference, x of dense", "inference_flops_of_dense"),
    ("FLOPs of training so far, x of dense", "training_flops_of_dense"),
)
"""Charts over epochs that are skipped where no run's value changes."""
LOG_SCALARS = ("threshold",)
"""Numbers of methods that are read by their order of magnitude."""


def curves(runs: Sequence[Run]) -> list[Chart]:
    """Return the curves that at least one run has values for."""
    return [chart for chart in (*_of_epochs(runs), *_of_reallocations(runs)) if chart is not None]


def _of_epochs(runs: Sequence[Run]) -> Iterator[Chart | None]:
    for number, wanted in enumerate(EPOCHS):
        found = [_epochs(index, run, wanted.key, is_error=wanted.is_error) for index, run in enumerate(runs)]
        if any(value != wanted.if_not for curve in found for value in curve.known):
            yield lines(wanted.title, found, "epoch", f"e{number}", log=wanted.log, decades=wanted.decades)
    for number, (title, key) in enumerate(CHANGING):
        found = [_epochs(index, run, key) for index, run in enumerate(runs)]
        if any(len(set(curve.known)) > 1 for curve in found):
            yield lines(title, found, "epoch", f"es{number}")


def _epochs(index: int, run: Run, key: str, *, is_error: bool = False) -> Curve:
    known = [epoch.numbers for epoch in run.metrics.epochs if key in epoch.numbers]  # Not all are evaluated.
    done, values = [numbers["epoch"] + 1 for numbers in known], [numbers[key] for numbers in known]
    return Curve(index, run.label, done, [100 - value for value in values] if is_error else values)


def _of_reallocations(runs: Sequence[Run]) -> Iterator[Chart | None]:
    moved = [[float(one.grown.sum()) / one.events for one in run.metrics.moves] for run in runs]
    yield lines("weights moved by a reallocation", _by_step(runs, moved), "step", "rm")
    seconds = [[one.seconds / one.events for one in run.metrics.moves] for run in runs]
    yield lines("seconds of a reallocation", _by_step(runs, seconds), "step", "rs", log=True)
    names = dict.fromkeys(name for run in runs for one in run.metrics.moves for name in one.scalars)
    for number, name in enumerate(names):
        values = [[one.scalars.get(name, math.nan) for one in run.metrics.moves] for run in runs]
        yield lines(name, _by_step(runs, values), "step", f"rn{number}", log=name in LOG_SCALARS)


def _by_step(runs: Sequence[Run], values: Sequence[Sequence[float]]) -> list[Curve]:
    return [
        Curve(index, run.label, [one.last_step for one in run.metrics.moves], y)
        for index, (run, y) in enumerate(zip(runs, values, strict=True))
    ]
