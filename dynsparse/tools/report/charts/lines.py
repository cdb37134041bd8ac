"""Curves: all runs in one chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from dynsparse.tools.report.charts.svg import (
    GRID,
    PAPER,
    Chart,
    as_json,
    figure,
    inline,
    plot_box,
    rounded,
    series_colour,
    series_dash,
    series_marker,
)

WIDTH, HEIGHT = 400, 240


@dataclass(frozen=True)
class Curve:
    """A run's values. `x` rises; NaN leaves a gap."""

    run: int
    """Number of the run, which gives it its colour, dashes and marker on the whole page."""
    name: str
    x: Sequence[float]
    y: Sequence[float]

    @property
    def known(self) -> list[float]:
        """Values that are neither NaN nor infinite."""
        return [value for value in self.y if math.isfinite(value)]


def lines(
    title: str, curves: Sequence[Curve], x_label: str, prefix: str, *, log: bool = False, decades: float = math.inf
) -> Chart | None:
    """Draw the curves; None if no run has a value. `log` is for values above 0 alone.

    A logarithmic axis shows as many `decades` below the largest value at most.
    """
    curves = [curve for curve in curves if curve.known]
    if not curves:
        return None
    values = [value for curve in curves for value in curve.known]
    log = log and min(values) > 0 and max(values) > min(values)
    drawn = figure(WIDTH, HEIGHT)
    axes = drawn.add_subplot()
    for curve in curves:
        _draw(axes, curve)
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y")
    axes.tick_params(length=0)
    if log:
        least = max(values) / 10**decades
        values = [value for value in values if value >= least]
    _scale(axes, values, log=log)
    if log and decades < math.inf:
        axes.set_ylim(bottom=min(values) / 1.5)
    svg = inline(drawn, prefix)
    hover = {
        "kind": "lines",
        "box": plot_box(drawn, axes),
        "x": x_label,
        "domain": list(axes.get_xlim()),
        "series": [
            {"run": curve.run, "name": curve.name, "x": list(curve.x), "y": rounded(curve.y)} for curve in curves
        ],
    }
    return Chart(f"{title}{' (log)' if log else ''}", svg, _in_words(curves), as_json(hover))


def _draw(axes: Axes, curve: Curve) -> None:
    every = max(1, len(curve.x) // 6)
    axes.plot(
        curve.x,
        curve.y,
        color=series_colour(curve.run),
        linestyle=series_dash(curve.run),
        linewidth=1.6,
        marker=series_marker(curve.run),
        markersize=4.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.6,
        # Each run's markers in places of their own: where lines lie upon each other, all can be seen.
        markevery=((curve.run * every // 3) % every, every),
    )


def _scale(axes: Axes, values: Sequence[float], *, log: bool) -> None:
    if log:
        axes.set_yscale("log")
        decades = math.log10(max(values) / min(values))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,), numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return
    if max(values) == min(values):
        spread = abs(values[0]) / 2 or 1.0
        axes.set_ylim(values[0] - spread, values[0] + spread)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(
        EngFormatter(sep=" ") if max(values) >= 10_000 else FuncFormatter(lambda value, _: f"{value:g}")
    )


def _in_words(curves: Sequence[Curve]) -> str:
    def of(curve: Curve) -> str:
        known = curve.known
        return f"{curve.name} from {known[0]:.4g} to {known[-1]:.4g}, least {min(known):.4g}, most {max(known):.4g}"

    return "; ".join(of(curve) for curve in curves)


def swatch(run: int, prefix: str) -> Markup:
    """A run's line with its marker, for the legend."""
    drawn = figure(34, 14)
    drawn.set_layout_engine("none")
    axes = drawn.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 34)
    axes.set_ylim(0, 14)
    style = {"color": series_colour(run), "linestyle": series_dash(run), "linewidth": 1.8}
    axes.plot([1, 33], [7, 7], **style)
    axes.plot([17], [7], marker=series_marker(run), markersize=6, color=series_colour(run), markeredgecolor=GRID)
    return inline(drawn, prefix)
