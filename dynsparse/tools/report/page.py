"""The page: its content, in its order, put into page.html."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from dynsparse import __version__
from dynsparse.tools.report import configs, dense, shrinks, tables, totals
from dynsparse.tools.report.charts.heat import COLUMNS, Readings, colour_bar, common_scale, heat
from dynsparse.tools.report.charts.lines import swatch
from dynsparse.tools.report.charts.moves import moves
from dynsparse.tools.report.charts.svg import Chart, drawing
from dynsparse.tools.report.charts.timeline import beginning, outcome, timeline
from dynsparse.tools.report.curves import curves
from dynsparse.tools.report.run import Run
from dynsparse.training.run import names

HERE = Path(__file__).parent


@dataclass(frozen=True)
class OfRun:
    """A chart of one run."""

    run: int
    label: str
    chart: Chart


@dataclass(frozen=True)
class Maps:
    """A heat map for each run, on one scale."""

    bar: Markup
    charts: list[OfRun]


def render(runs: Sequence[Run], title: str) -> str:
    """Return the whole page. It holds no reference to anything outside itself."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,  # Names, configs and layers are text that others wrote.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    with drawing():
        content = {
            "swatches": [swatch(index, f"s{index}") for index in range(len(runs))],
            "curves": curves(runs),
            "active": _maps(runs, _active_shares(runs), "share active", "d"),
            "moves": list(_moves(runs)),
            "exploration": _maps(runs, _explorations(runs), "share ever active", "x"),
            "timelines": list(_timelines(runs)),
        }
    return environment.get_template("page.html").render(
        content,
        title=title,
        runs=runs,
        tables=tables,
        totals=totals,
        dense=dense,
        shrinks=shrinks,
        configs_of=configs.configs,
        versions_of=configs.versions,
        style=Markup(style),  # noqa: S704 - a file of ours
        script=Markup(script),  # noqa: S704 - a file of ours
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        binning=list(_binning(runs)),
        without_moves=list(_without_moves(runs)),
        beginning=beginning,
        outcome=outcome,
        made=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        version=__version__,
    )


def _active_shares(runs: Sequence[Run]) -> list[tuple[int, Readings]]:
    """Return the fractions of active weights, for runs whose layers' sizes are known."""
    found = []
    for index, run in enumerate(runs):
        metrics = run.metrics
        if metrics.names and metrics.before is not None and set(metrics.names) <= set(metrics.weights):
            weights = np.array([metrics.weights[name] for name in metrics.names], dtype=np.float64)
            active = np.stack([metrics.before, *(reading.active for reading in metrics.layers)])
            steps = np.array([0, *(reading.step for reading in metrics.layers)], dtype=np.float64)
            found.append((index, Readings(metrics.names, steps, active / weights)))
    return found


def _explorations(runs: Sequence[Run]) -> list[tuple[int, Readings]]:
    """Return the fractions ever active, for runs that have them: tied layers have none."""
    found = []
    for index, run in enumerate(runs):
        explored = np.array([reading.explored for reading in run.metrics.layers])
        if explored.size and np.isfinite(explored).any():
            steps = np.array([reading.step for reading in run.metrics.layers], dtype=np.float64)
            found.append((index, Readings(run.metrics.names, steps, explored)))
    return found


def _maps(runs: Sequence[Run], found: Sequence[tuple[int, Readings]], what: str, prefix: str) -> Maps | None:
    if not found:
        return None
    scale = common_scale([readings for _, readings in found])
    charts = [
        OfRun(index, runs[index].label, heat(what, what, readings, scale, f"{prefix}{index}"))
        for index, readings in found
    ]
    return Maps(colour_bar(scale, what, f"{prefix}b"), charts)


def _moves(runs: Sequence[Run]) -> Iterator[OfRun]:
    """Yield the bars of runs in which weights moved from layer to layer."""
    for index, run in enumerate(runs):
        done = run.metrics.moves
        if _moves_between_layers(run):
            yield OfRun(index, run.label, moves(run.metrics.names, list(done), done.size, f"m{index}"))


def _without_moves(runs: Sequence[Run]) -> Iterator[str]:
    """Say why a run has no bars, or no map of the shares of active weights."""
    for run in runs:
        metrics = run.metrics
        if not metrics.names:
            yield f"{run.label} has no sparse layers."
        elif not len(metrics.moves):
            known = f"{run.label}: {names.METRICS} tells of none of its {run.reallocations:,} reallocations."
            yield known if run.reallocations else f"{run.label} has made no reallocation."
        elif not _moves_between_layers(run):
            yield f"{run.label}: each layer grew as many weights as it dropped, in every reallocation."
        if metrics.names and not metrics.weights:
            yield f"{run.label}: shares of active weights follow after its first epoch, which tells the layers' sizes."


def _moves_between_layers(run: Run) -> bool:
    return any((one.grown != one.dropped).any() for one in run.metrics.moves)


def _timelines(runs: Sequence[Run]) -> Iterator[OfRun]:
    for index, run in enumerate(runs):
        if run.history is not None and run.history.sessions:
            chart = timeline(run.history.sessions, run.metrics.last_step, index, f"t{index}")
            yield OfRun(index, run.label, chart)


def _binning(runs: Sequence[Run]) -> Iterator[str]:
    """Say which points of the charts stand for more than one reading."""
    yield f"Heat maps have {COLUMNS} columns of equal numbers of steps; a column shows how things stood at its end."
    for run in runs:
        metrics = run.metrics
        if metrics.moves.size > 1:
            yield (
                f"{run.label}: {metrics.moves.added:,} reallocations, put together by {metrics.moves.size:,}: weights "
                f"and seconds are means of a bin in curves and sums in bars, the method's numbers those at its end. "
                f"Totals count each."
            )
        if metrics.moves.added < run.reallocations:
            yield (
                f"{run.label}: {names.METRICS} tells of {metrics.moves.added:,} of {run.reallocations:,} "
                f"reallocations: where a method makes one a step, it has few; those before a resume from another "
                f"folder, and damaged lines, are missing. Weights dropped and grown are of those alone."
            )
        if metrics.epochs.size > 1:
            yield f"{run.label}: {metrics.epochs.added:,} epochs, of which curves show one in {metrics.epochs.size:,}."
