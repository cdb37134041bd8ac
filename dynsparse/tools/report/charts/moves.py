"""Gains and losses: for each layer a bar a reallocation, upwards for growth, downwards for loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dynsparse.tools.report.charts.heat import WIDTH, chart_height, label_rows
from dynsparse.tools.report.charts.svg import GAIN, GRID, LOSS, Chart, as_json, figure, inline, plot_box
from dynsparse.tools.report.metrics import Moves
from dynsparse.tools.report.words import count, signed

MOST_BARS = 8_000
"""Bars of a chart. Where there are more, neighbours are joined, so that the page stays small."""


def moves(names: Sequence[str], done: Sequence[Moves], events: int, prefix: str) -> Chart:
    """Draw the moves. `done` are bins of `events` reallocations each; the last may have fewer.

    Each row has a scale of its own, by square roots: the first reallocations often move many times what later ones do.
    """
    done, events = _fewer(done, events, MOST_BARS // max(1, len(names)))
    net = np.stack([one.grown - one.dropped for one in done], axis=1)
    most = np.abs(net).max(axis=1)
    drawn = figure(WIDTH, chart_height(len(names)))
    axes = drawn.add_subplot()
    heights = 0.45 * np.sign(net) * np.sqrt(np.abs(net) / np.maximum(most, 1)[:, None])
    for row in range(len(names)):
        axes.axhline(row, color=GRID, linewidth=0.7)
    axes.add_patch(_bars(heights, positive=True))
    axes.add_patch(_bars(heights, positive=False))
    last = sum(one.events for one in done)
    axes.set_xlim(0, len(done))
    axes.set_ylim(len(names) - 0.5, -0.5)
    totals = net.sum(axis=1)
    label_rows(axes, names, [f"{signed(t)} (bars to {count(m)})" for t, m in zip(totals, most, strict=True)])
    _count_events(axes, events, last)
    svg = inline(drawn, prefix)
    hover = {
        "kind": "moves",
        "box": plot_box(drawn, axes),
        "names": list(names),
        "steps": [[one.first_step, one.last_step, one.events] for one in done],
        "dropped": np.stack([one.dropped for one in done], axis=1).astype(int).tolist(),
        "grown": np.stack([one.grown for one in done], axis=1).astype(int).tolist(),
    }
    summary = "; ".join(f"{name} {signed(total)} in all" for name, total in zip(names, totals, strict=True))
    note = "" if events == 1 else f"A bar is {events:,} reallocations."
    return Chart("grown minus dropped", svg, summary, as_json(hover), note, least_width=WIDTH - 60)


def _fewer(done: Sequence[Moves], events: int, most: int) -> tuple[Sequence[Moves], int]:
    while len(done) > max(most, 1):
        pairs = [done[at : at + 2] for at in range(0, len(done), 2)]
        done, events = [pair[0].joined(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs], 2 * events
    return done, events


def _bars(heights: NDArray[np.float64], *, positive: bool) -> PathPatch:
    """Return the bars of one direction, of all rows, as one path: far smaller than as many elements."""
    rows, columns = np.nonzero(heights > 0 if positive else heights < 0)
    ends = rows - heights[rows, columns]
    width = 0.86
    left, right = columns + (1 - width) / 2, columns + (1 + width) / 2
    corners = np.stack(
        [np.stack(pair, axis=1) for pair in ((left, rows), (left, ends), (right, ends), (right, rows), (left, rows))],
        axis=1,
    )
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(rows)
    return PathPatch(Path(corners.reshape(-1, 2), codes), facecolor=GAIN if positive else LOSS, linewidth=0)


def _count_events(axes: Axes, events: int, last: int) -> None:
    """Put ticks at round numbers of reallocations, whatever a bar stands for."""
    ticks = [tick for tick in MaxNLocator(6, integer=True).tick_values(0, last) if 0 <= tick <= last]
    axes.set_xticks([tick / events for tick in ticks], [f"{tick:,.0f}" for tick in ticks])
    axes.set_xlabel("reallocation")
