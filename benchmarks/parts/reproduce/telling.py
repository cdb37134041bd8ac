"""Facts of a table's runs beside their accuracy, for its page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.harness.record import Result

ORDER = ("dsr", "set", "static")
"""Methods in the order of their accuracy in the paper (Mostafa & Wang 2019)."""


def ordered(runs: Sequence[Result]) -> list[Result]:
    """Return for each sparsity how many seeds have the paper's order, of those that all its methods have."""
    found = []
    for sparsity in sorted({run["sparsity"] for run in runs}):
        by = {(run["method"], run["seed"]): run["test_top1"] for run in runs if run["sparsity"] == sparsity}
        seeds = [seed for seed in {seed for _, seed in by} if all((method, seed) in by for method in ORDER)]
        holds = [seed for seed in seeds if by[ORDER[0], seed] > by[ORDER[1], seed] > by[ORDER[2], seed]]
        if seeds:
            found.append({"sparsity": sparsity, "seeds": len(seeds), "holds": len(holds)})
    return found


def times(runs: Sequence[Result], titles: Mapping[str, str]) -> list[Result]:
    """Return the seconds that a run of each method took: median, least and most."""
    by: dict[str, list[float]] = {}
    for run in runs:
        by.setdefault(run["method"], []).append(run["seconds"])
    return [
        {"title": title, "runs": len(by[name]), "median": statistics.median(by[name]), "all": sorted(by[name])}
        for name, title in titles.items()
        if name in by
    ]


def empty(runs: Sequence[Result], titles: Mapping[str, str]) -> Result:
    """Return the outputs (neurons or filters) that no weight reaches at the end, by method and sparsity.

    Means over the seeds, of all layers together, and the layer that has most of them. Runs that have not counted are
    left out. {} if there are none.
    """
    counted = [run for run in runs if run["sparsity"] and "dead_outputs" in run]
    sparsities = sorted({run["sparsity"] for run in counted})
    rows: list[Result] = []
    for name, title in titles.items():
        of_method = [run for run in counted if run["method"] == name]
        cells = [_empty([run["dead_outputs"] for run in of_method if run["sparsity"] == one]) for one in sparsities]
        if any(cells):
            rows.append({"title": title, "cells": cells})
    if not any(cell and cell["sum"] for row in rows for cell in row["cells"]):
        return {}
    sparse = [run for run in runs if run["sparsity"]]
    return {"sparsities": sparsities, "rows": rows, "counted": len(counted), "runs": len(sparse)}


def _empty(seeds: Sequence[Mapping[str, int]]) -> Result | None:
    if not seeds:
        return None
    layers = {name: 0.0 for of_seed in seeds for name in of_seed}
    for of_seed in seeds:
        for name, count in of_seed.items():
            layers[name] += count / len(seeds)
    most = max(layers, key=layers.__getitem__, default="")
    return {"sum": sum(layers.values()), "layer": most.removesuffix(".weight"), "in_layer": layers.get(most, 0.0)}


def ends(runs: Sequence[Result]) -> Result:
    """Return the density of each layer at the end of dynamic sparse reparameterization: means over the seeds."""
    runs = [run for run in runs if run["method"] == "dsr" and "densities" in run]
    sparsities = sorted({run["sparsity"] for run in runs})
    at = {one: [run["densities"] for run in runs if run["sparsity"] == one] for one in sparsities}
    layers = list(runs[0]["densities"]) if runs else []
    rows = [
        {
            "title": name.removesuffix(".weight"),
            "cells": [statistics.mean(seed[name][-1] for seed in at[one]) for one in sparsities],
        }
        for name in layers
    ]
    return {"sparsities": sparsities, "rows": rows}
