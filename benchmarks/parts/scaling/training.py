"""Training on several numbers of ranks: runs in turn, and what their steps took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.harness.record import Result
from benchmarks.harness.rounds import in_rounds, ratio, returned, summary
from benchmarks.parts.scaling.computed import PERIOD
from benchmarks.parts.scaling.worker import CLOCKS, Amount, train
from tests.ranks import run_distributed

Runs = Mapping[int, Sequence[Any]]
"""Lists of what every rank found, by number of ranks, one a round."""


def training(amount: Amount) -> Result:
    """Summarise the steps of each network on each number of ranks."""
    ways = {
        (name, ranks): partial(run_distributed, train, ranks, subject, amount)
        for name, subject in amount.subjects.items()
        for ranks in amount.training_ranks
    }
    found = in_rounds(ways, amount.rounds, warm_up=0, measure=returned)
    return {name: of_network({n: found[name, n] for n in amount.training_ranks}) for name in amount.subjects}


def of_network(runs: Runs) -> Result:
    first = runs[min(runs)][0][0]
    rounds = {ranks: [of_run(run) for run in found] for ranks, found in runs.items()}
    return {
        **{key: first[key] for key in ("layers", "parameters", "active_weights", "model_sparsity")},
        "dropped": summary([dropped for found in runs.values() for run in found for dropped in run[0]["dropped"]]),
        "ranks": {str(ranks): on_ranks(runs[ranks], rounds[ranks], rounds[min(rounds)]) for ranks in runs},
    }


def on_ranks(runs: Sequence[Any], found: Sequence[Any], base: Sequence[Any]) -> Result:
    """Summarise the rounds on one number of ranks, and ratios to `base` round by round."""
    names = ("step_ms", "sparse_ms", "reallocation_ms", "share")

    def column(rounds: Sequence[Any], clock: str, name: str) -> list[float]:
        return [one[clock][name] for one in rounds]

    return {
        **{clock: {name: summary(column(found, clock, name)) for name in found[0][clock]} for clock in CLOCKS},
        "ratio_to_one_rank": {
            clock: {name: ratio(column(found, clock, name), column(base, clock, name)) for name in names}
            for clock in CLOCKS
        },
        "connections": sorted({rank["connections"] for run in runs for rank in run}),
        "gathered_bytes": max(sum(rank["gathered"].get("gather", [])) for run in runs for rank in run),
    }


def of_run(ranks: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Return milliseconds of a run's steps and their parts, and fractions of a step, by clock.

    A step takes as long as on the rank where it takes longest, and so does each part.
    """
    steps = list(zip(*(rank["steps"] for rank in ranks), strict=True))
    return {clock: of_steps([slowest(step, kind) for step in steps]) for kind, clock in enumerate(CLOCKS)}


def slowest(step: Sequence[Any], kind: int) -> dict[str, float]:
    """Return milliseconds of one step's parts by one clock, and whether it reallocated."""
    parts = {part: max(1000 * rank[part][kind] for rank in step) for part in step[0] if part != "due"}
    return {**parts, "due": step[0]["due"]}


def of_steps(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return medians in ms, and fractions of a step without a reallocation."""
    plain, due = [step for step in steps if not step["due"]], [step for step in steps if step["due"]]
    step, sparse = (statistics.median(one[part] for one in plain) for part in ("step", "every"))
    reallocation = statistics.median(one["after_step"] for one in due)
    return {
        "step_ms": step,
        "masking_ms": sparse,
        "reallocation_ms": reallocation,
        "verify_ms": statistics.median(one["verify"] for one in due),
        "sparse_ms": sparse + reallocation / PERIOD,
        "share_masking": sparse / step,
        "share_reallocation": reallocation / PERIOD / step,
        "share": (sparse + reallocation / PERIOD) / step,
    }
