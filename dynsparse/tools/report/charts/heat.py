"""Heat maps: a row a layer, training from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from dynsparse.tools.report.charts.svg import INK, Chart, as_json, figure, inline, plot_box, rounded
from dynsparse.tools.report.words import clipped, percent
from pipelines.common.text import one_line

WIDTH = 620
COLUMNS = 200
COLOURS = "viridis"  # Of even steps to the eye, in grey and to the colour-blind too.


@dataclass(frozen=True)
class Readings:
    """Values of layers at some steps, which rise: [steps, layers]."""

    names: Sequence[str]
    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def last(self) -> float:
        """Last step of the axis: at least 1, so that the axis has a length where all was read at step 0."""
        return max(float(self.steps[-1]), 1.0)

    def columns(self) -> NDArray[np.float64]:
        """[layers, COLUMNS] at even steps: in each column the latest reading before its end; NaN before the first."""
        ends = np.linspace(0, self.last, COLUMNS + 1)[1:]
        at = np.searchsorted(self.steps, ends, side="right") - 1
        return np.where(at >= 0, self.values[np.maximum(at, 0)].T, np.nan)


def common_scale(readings: Sequence[Readings]) -> Normalize:
    """Return one scale for all runs, so that colours can be compared; logarithmic where fractions are far apart."""
    values = np.concatenate([reading.values.ravel() for reading in readings])
    values = values[np.isfinite(values)]
    least, most = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if least > 0 and most / least > 8:
        return LogNorm(least, most)
    return Normalize(least, most) if least < most else Normalize(least, least + 0.01)


def heat(title: str, what: str, readings: Readings, scale: Normalize, prefix: str) -> Chart:
    """Draw a heat map of `what` the fractions are, such as "share active".

    At the right of each row stand its first and its latest value.
    """
    cells = readings.columns()
    drawn = figure(WIDTH, chart_height(len(readings.names)))
    axes = drawn.add_subplot()
    last = readings.last
    rows = len(readings.names)
    axes.imshow(
        cells, aspect="auto", interpolation="none", cmap=COLOURS, norm=scale, extent=(0, last, rows - 0.5, -0.5)
    )
    first, latest = readings.values[0], readings.values[-1]
    label_rows(axes, readings.names, [f"{percent(a)} → {percent(b)}" for a, b in zip(first, latest, strict=True)])
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    svg = inline(drawn, prefix)
    hover = {
        "kind": "heat",
        "box": plot_box(drawn, axes),
        "what": what,
        "last": last,
        "names": list(readings.names),
        "values": [rounded(row) for row in cells],
    }
    ends = zip(readings.names, first, latest, strict=True)
    summary = "; ".join(f"{name} from {percent(a)} to {percent(b)}" for name, a, b in ends)
    return Chart(title, svg, summary, as_json(hover), least_width=WIDTH - 60)


def chart_height(rows: int) -> int:
    """Return a height in pixels: tall rows where there are few, and still readable ones where there are hundreds."""
    return 52 + rows * (30 if rows <= 8 else 20 if rows <= 24 else 15)


def label_rows(axes: Axes, names: Sequence[str], values: Sequence[str]) -> None:
    """Write the layers at the left, and their values at the right."""
    size = 11 if len(names) <= 24 else 9
    axes.set_yticks(range(len(names)), [clipped(one_line(name), 30) for name in names], size=size, color=INK)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    for row, value in enumerate(values):
        axes.annotate(
            value, (1, row), (6, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points", size=size,
            va="center_baseline",
        )  # fmt: skip


def colour_bar(scale: Normalize, label: str, prefix: str) -> Markup:
    """Return the key to the colours of all heat maps of this scale."""
    drawn = figure(380, 52)
    axes = drawn.add_subplot()
    bar = drawn.colorbar(ScalarMappable(scale, COLOURS), cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if isinstance(scale, LogNorm) else MaxNLocator(5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.tick_params(length=2)
    axes.set_xlabel(label)
    return inline(drawn, prefix)
