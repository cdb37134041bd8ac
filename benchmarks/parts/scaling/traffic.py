"""Traffic of reallocations and of small collectives on several numbers of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.harness.record import Result
from benchmarks.harness.rounds import in_rounds, ratio, returned, summary
from benchmarks.parts.scaling.worker import CLOCKS, FLAG_WAYS, Amount, reallocate
from tests.ranks import run_distributed

Calls = Sequence[Sequence[Sequence[Any]]]
"""Time and bytes of each call, by round, rank and repeat."""


def traffic(amount: Amount) -> Result:
    """Summarise each case, and the stop flags, on each number of ranks."""
    ways = {
        ranks: partial(run_distributed, reallocate, ranks, amount.cases, amount.calls, amount.repeats)
        for ranks in amount.traffic_ranks
    }
    runs = in_rounds(ways, amount.rounds, warm_up=0, measure=returned)
    cases = [
        {
            **case._asdict(),
            "weights": case.weights,
            "ranks": {
                str(ranks): of_calls([[rank["cases"][number] for rank in run] for run in found])
                for ranks, found in runs.items()
            },
        }
        for number, case in enumerate(amount.cases)
    ]
    flags = {str(ranks): of_flags(found) for ranks, found in runs.items()}
    connections = {
        str(ranks): sorted({rank["connections"] for run in found for rank in run}) for ranks, found in runs.items()
    }
    return {"cases": cases, "flags": flags, "connections": connections}


def of_flags(runs: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Summarise each way to ask for the flags, and the ring's time to doubling's. `runs[round][rank]`."""
    by_way: dict[str, Calls] = {way: [[rank["flags"][way] for rank in run] for run in runs] for way in FLAG_WAYS}
    turns = {way: slowest_ms(calls, CLOCKS.index("wall")) for way, calls in by_way.items()}
    ring_to_doubling = ratio(turns["ring"], turns["doubling"])
    return {**{way: of_calls(calls) for way, calls in by_way.items()}, "ring_to_doubling": ring_to_doubling}


def of_calls(runs: Calls) -> dict[str, Any]:
    """Return milliseconds on the slowest rank, and what each rank hands over, the same each time."""
    times = {f"{clock}_ms": summary(slowest_ms(runs, kind)) for kind, clock in enumerate(CLOCKS)}
    by_rank = zip(*runs, strict=True)
    return {**times, "sent": [always_sent([one["sent"] for run in rank for one in run]) for rank in by_rank]}


def slowest_ms(runs: Calls, kind: int) -> list[float]:
    """Return the milliseconds of each repeat of each round, on the rank where it takes longest by this clock."""
    return [1000 * max(one["taken"][kind] for one in ranks) for run in runs for ranks in zip(*run, strict=True)]


def always_sent(sent: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return the bytes of each call of a rank, by function. RuntimeError if they differ from time to time."""
    first = dict(sent[0])
    if any(dict(other) != first for other in sent):
        raise RuntimeError(f"repeats differ in what a rank hands over: {sent}")
    return first
