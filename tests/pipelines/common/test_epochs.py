"""Epochs of different lengths: which step is in which epoch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pipelines.common.epochs import EpochTable

TABLES = [7, {0: 10, 3: 20}, {0: 4, 1: 1, 3: 3}, {0: 2, 5: 2}]


@pytest.mark.parametrize("given", TABLES)
def test_steps_are_counted_as_by_hand(given: Any) -> None:
    table = EpochTable.of(given)
    lengths = [table.steps(epoch) for epoch in range(9)]
    starts = [0, *itertools.accumulate(lengths)]
    assert [table.before(epoch) for epoch in range(9)] == starts[:-1]
    by_hand = [epoch for epoch, length in enumerate(lengths) for _ in range(length)]
    assert [table.epoch_of(step) for step in range(starts[-1])] == by_hand
    for step, epoch in enumerate(by_hand):
        of_first = table.in_first(step)
        assert of_first / lengths[0] == pytest.approx(epoch + (step - starts[epoch]) / lengths[epoch], rel=1e-12)
        assert of_first // lengths[0] == epoch, "a step never leaves its epoch by rounding"


def test_given_and_read_back() -> None:
    assert [EpochTable.of(given).as_given() for given in TABLES] == [7, {0: 10, 3: 20}, {0: 4, 1: 1, 3: 3}, 2]
    assert [EpochTable.of(given).varies for given in TABLES] == [False, True, True, False]


def test_the_step_itself_where_all_epochs_are_as_long() -> None:
    found = [EpochTable.of(13).in_first(step) for step in range(100)]
    assert found == list(range(100))
    assert all(type(step) is int for step in found), "rates keep their last bits"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "entry for epoch 0"),
        ({3: 10}, "entry for epoch 0"),
        ({0: 10, 5: 3, 4: 2}, "they must rise"),
        ({0: 10, 5: 0}, "epoch 5 has no steps"),
        ({0: 10, 5: 2.5}, "entry 5: 2.5; write whole numbers"),
    ],
)
def test_tables_that_are_none(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochTable.of(given)
