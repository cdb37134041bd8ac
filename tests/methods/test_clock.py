"""The clock of runs whose epochs differ in length."""

from __future__ import annotations

import pytest

from dynsparse.methods.base import idle_words
from dynsparse.methods.clock import Schedule
from dynsparse.methods.pruning import PruningSettings
from dynsparse.methods.rigl import RiglSettings
from pipelines.common.epochs import EpochTable

GROWING = Schedule(10 + 10 + 40, EpochTable.of({0: 10, 2: 20}))
"""Two epochs of 10 steps and two of 20."""


def test_epochs_end_after_their_own_steps() -> None:
    clocks = [GROWING.clock(step) for step in range(1, 61)]
    assert [clock.step for clock in clocks if clock.ends_epoch] == [10, 20, 40, 60]
    assert [clock.epoch for clock in clocks] == [0] * 10 + [1] * 10 + [2] * 20 + [3] * 20
    assert clocks[-1].whole_epochs == 4


def test_progress_is_that_of_epochs() -> None:
    """The learning rate is a curve over the same time."""
    assert [GROWING.clock(step).progress for step in (5, 10, 20, 30, 40, 60)] == [0.125, 0.25, 0.5, 0.625, 0.75, 1.0]
    rises = [GROWING.clock(step).progress for step in range(1, 61)]
    assert rises == sorted(set(rises))


@pytest.mark.parametrize("lengths", [10, EpochTable.of(10), EpochTable.of({0: 10, 2: 10})])
def test_epochs_of_one_length_are_as_before(lengths: int | EpochTable) -> None:
    clock = Schedule(35, lengths).clock(33)
    assert (clock.epoch, clock.steps_per_epoch, clock.epochs, clock.total_steps) == (3, 10, 4, 35)
    assert clock.before is None
    assert clock.progress == 33 / 35


def test_pruning_comes_at_the_ends_of_epochs() -> None:
    settings = PruningSettings(name="pruning", after_epoch=1, every_epochs=2, iterations=2)
    method = settings.build()
    assert [step for step in range(1, 61) if method.is_due(GROWING.clock(step))] == [20, 60]
    method.check_length(GROWING.clock(60))


def test_periods_are_steps_by_epoch() -> None:
    method = RiglSettings.model_validate({"name": "rigl", "period": {0: 5, 2: 8}, "until": 1.0}).build()
    due = [step for step in range(1, 61) if method.is_due(GROWING.clock(step))]
    assert due == [5, 10, 15, 20, 24, 32, 40, 48, 56]


def test_idle_methods_tell_both_lengths() -> None:
    method = RiglSettings.model_validate({"name": "rigl", "period": 70}).build()
    assert "60 steps to come (10 to 20 an epoch)" in str(idle_words(method, "rigl", GROWING, 0))
