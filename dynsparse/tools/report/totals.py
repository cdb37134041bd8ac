"""The effect of all reallocations together on each layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynsparse.flops import in_words
from dynsparse.tools.report.run import Run
from dynsparse.tools.report.words import NOTHING, count, percent, signed


@dataclass(frozen=True)
class LayerTotals:
    """A layer's row; everything in words."""

    name: str
    cells: tuple[str, ...]
    net: int
    """Sign of the net change."""


TOTALS = (
    "weights",
    "active before",
    "dropped",
    "grown",
    "net",
    "active now",
    "sparsity before",
    "sparsity now",
    "outputs without weights",
    "FLOPs now",
)


def totals(run: Run) -> list[LayerTotals]:
    """Return a row for each layer, and one for all together at the end."""
    metrics = run.metrics
    if metrics.before is None:
        return []
    dropped = sum((moves.dropped for moves in metrics.moves), metrics.before * 0)
    grown = sum((moves.grown for moves in metrics.moves), metrics.before * 0)
    now, weights = metrics.layers[-1].active, [float(metrics.weights.get(name, math.nan)) for name in metrics.names]
    flops = [metrics.flops.get(name, math.nan) for name in metrics.names]
    dead = [metrics.dead.get(name, math.nan) for name in metrics.names]
    columns = (weights, metrics.before, dropped, grown, now, dead, flops)
    rows = [*zip(metrics.names, *columns, strict=True), ("all", *(float(sum(column)) for column in columns))]
    return [_totals(str(name), *(float(number) for number in numbers)) for name, *numbers in rows]


def _totals(
    name: str, weights: float, before: float, dropped: float, grown: float, now: float, dead: float, flops: float
) -> LayerTotals:
    net = now - before
    cells = (count(weights), count(before), count(dropped), count(grown), signed(net), count(now))
    return LayerTotals(
        name,
        (
            *cells,
            percent(1 - before / weights),
            percent(1 - now / weights),
            NOTHING if math.isnan(dead) else count(dead),
            in_words(None if math.isnan(flops) else flops),
        ),
        (net > 0) - (net < 0),
    )
