"""Runs of the contract's network to their end: resumed in mid-epoch, or on several ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dynsparse.runtime import Worker
from tests.methods.test_contract import STEPS, Run, assert_same, assert_zero_outside
from tests.ranks import run_distributed

Case = tuple[str, dict[str, Any]]
"""Name of a method, and options of its run."""


def stepped(name: str, granularity: int, sparsity: float, **options: Any) -> Iterator[tuple[int, Run]]:
    """Yield the number of each step and the run after it, whose masks hold and whose weights outside them are 0.

    A twin resumes from its state one step after an event, in mid-epoch. In the end both are the same bits.
    """
    run = Run(name, granularity, sparsity, "adamw", **options)
    for number in range(1, STEPS + 1):
        run.step(number)
        if number == STEPS // 2 + 1:
            resumed = Run(name, granularity, sparsity, "adamw", **options)
            resumed.load(run.save())
        elif number > STEPS // 2 + 1:
            resumed.step(number)
        run.masks.check()
        assert_zero_outside(run)
        yield number, run
    assert_same(run, resumed)


def assert_ranks_agree(cases: Sequence[Case], workers: int = 2, sparsity: float = 0.8) -> None:
    """Ranks whose samples differ end with the same masks."""
    first, *others = run_distributed(_masks_of, workers, list(cases), sparsity)
    assert others == [first] * (workers - 1)


def _masks_of(worker: Worker, cases: Sequence[Case], sparsity: float) -> list[Any]:
    """Active units of each layer in the end, for each case."""
    found = []
    for name, options in cases:
        run = Run(name, 4, sparsity, "sgd", worker=worker, **options)
        for number in range(1, STEPS + 1):
            run.step(number)
        found.append([layer.active.tolist() for layer in run.masks])
    return found
