"""Shrinks of a run: the channels of each layer that has lost some, and the network's size, before and after each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynsparse.tools.report.run import Run
from dynsparse.tools.report.words import NOTHING, count

Record = Mapping[str, Any]


def heads(run: Run) -> list[str]:
    """Return the head of each shrink's column."""
    return [f"at {one['epoch']:,}, after {one['step']:,} steps" for one in run.metrics.shrinks]


def rows(run: Run) -> list[tuple[str, ...]]:
    """Return a row for each layer that has changed, and one for the parameters at the end; none without a shrink."""
    shrinks = run.metrics.shrinks
    layers = list(dict.fromkeys(name for one in shrinks for name in one["channels"]))
    found = [
        (f"{name}: {side}", *_cells(shrinks, name, side))
        for name in layers
        for side in ("inputs", "outputs")
        if any(_has_changed(one, name, side) for one in shrinks)
    ]
    parameters = [_arrow(one["parameters_before"], one["parameters"]) for one in shrinks]
    return [*found, ("parameters", *parameters)] if shrinks else []


def _cells(shrinks: Sequence[Record], name: str, side: str) -> list[str]:
    return [
        _arrow(one["channels"][name][f"{side}_before"], one["channels"][name][side])
        if _has_changed(one, name, side)
        else NOTHING
        for one in shrinks
    ]


def _has_changed(one: Record, name: str, side: str) -> bool:
    layer = one["channels"].get(name, {})
    return bool(layer and layer[side] != layer[f"{side}_before"])


def _arrow(before: float, after: float) -> str:
    return f"{count(before)} → {count(after)}"
