"""Rows of the tables whose rows are no methods: parts of a recipe, and networks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.harness.record import Result
from benchmarks.parts.reproduce.table import described, deviation

BASE = "base"
"""Part that the others are compared with, where there is one."""

DENSE = ("dense", 0.0)
"""Row that stands beside those of every sparsity."""


def rows(runs: Sequence[Result], titles: Mapping[str, str]) -> list[Result]:
    """Return a row for each title that has runs, with a cell for each sparsity; None for a cell without runs."""
    cells = {(row["method"], row["sparsity"]): row for row in described(runs)}
    sparsities = sparsities_of(runs)
    found = []
    for name, title in titles.items():
        row = [cells.get((name, sparsity)) for sparsity in sparsities]
        if any(row):
            found.append({"title": title, "cells": [cell and {**cell, **_difference(runs, cell)} for cell in row]})
    return found


def costs(runs: Sequence[Result], titles: Mapping[str, str]) -> list[Result]:
    """Return a table a sparsity: rows of accuracy and of what it took, the best first. The dense network is in each.

    FLOPs are multiples of the dense network's, means over the seeds. Memory, in MiB, and weights are medians.
    """
    rows = [{**row, **_costs(runs, row), "title": titles[row["method"]]} for row in described(runs)]
    return [
        {
            "sparsity": sparsity,
            "rows": sorted(
                (row for row in rows if row["sparsity"] == sparsity or (row["method"], row["sparsity"]) == DENSE),
                key=lambda row: -row["mean"],
            ),
        }
        for sparsity in sparsities_of(runs)
        if sparsity > 0
    ]


def _costs(runs: Sequence[Result], row: Result) -> Result:
    members = [run for run in runs if (run["method"], run["sparsity"]) == (row["method"], row["sparsity"])]
    return {
        "inference": statistics.mean(run["flops"]["inference"] for run in members),
        "training": statistics.mean(run["flops"]["training"] for run in members),
        "memory": statistics.median(run["peak_memory"] / 2**20 for run in members),
        "weights": statistics.median(run["active_weights"] for run in members),
    }


def sparsities_of(runs: Sequence[Result]) -> list[float]:
    """Return the sparsities of a table in their order."""
    return sorted({run["sparsity"] for run in runs})


def _difference(runs: Sequence[Result], cell: Result) -> Result:
    """Return the mean difference to the base at the same sparsity, over the seeds that both have."""
    ours, base = (_by_seed(runs, method, cell["sparsity"]) for method in (cell["method"], BASE))
    pairs = [ours[seed] - base[seed] for seed in sorted(ours.keys() & base.keys())]
    if cell["method"] == BASE or not pairs:
        return {"difference": None, "difference_sd": None, "pairs": 0}
    return {"difference": statistics.mean(pairs), "difference_sd": deviation(pairs), "pairs": len(pairs)}


def _by_seed(runs: Sequence[Result], method: str, sparsity: float) -> dict[int, float]:
    return {run["seed"]: run["test_top1"] for run in runs if (run["method"], run["sparsity"]) == (method, sparsity)}
