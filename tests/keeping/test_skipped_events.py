"""Events whose step was skipped: a method that grows by gradients makes up for them in the next step."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn, optim

from dynsparse import ReallocationReport, SparseTraining
from dynsparse.errors import UserError
from tests.small_mlp import ACTIVE, loss_of, mlp, step

DENSITY = {"name": "cubic", "start": 0.5, "end": 0.6}
LAST = 6
"""Step of the last event in which the density falls, of 10 steps."""


class Loop:
    """A loop that skips some steps."""

    def __init__(self, state: Any = None, model: nn.Module | None = None, **method: Any) -> None:
        self.model = mlp() if model is None else model
        self.optimizer = optim.SGD(self.model.parameters(), lr=0.1)
        self.events: list[ReallocationReport] = []
        settings = {"name": "granet", "period": 2, "density": DENSITY, **method}
        self.sparse = SparseTraining(
            self.model,
            self.optimizer,
            settings,
            sparsity=0.9,
            total_steps=10,
            steps_per_epoch=10,
            state=state,
            on_reallocation=self.events.append,
        )

    def go(self, until: int, *skipped: int) -> None:
        while self.sparse.steps < until:
            if self.sparse.steps + 1 in skipped:
                self.sparse.skip_step()
            else:
                step(self.model, self.optimizer, seed=self.sparse.steps)

    @property
    def steps(self) -> list[int]:
        return [report.step for report in self.events]


@pytest.mark.parametrize("stop", [1000, 0])
def test_the_last_fall_of_the_density_comes_a_step_later(stop: int) -> None:
    """The network would stay too dense else: past `stop_epoch` no event follows."""
    loop = Loop(stop_epoch=stop)
    loop.go(10, LAST)
    assert loop.steps == ([2, 4, 7, 8] if stop else [2, 4, 7])
    assert loop.sparse.masks.active_weights == ACTIVE
    assert loop.events[2].active != loop.events[1].active


def test_several_skipped_events_are_one() -> None:
    loop = Loop()
    loop.go(10, 3, 4, 5, 6)
    assert loop.steps == [2, 7, 8]
    assert loop.sparse.masks.active_weights == ACTIVE


def test_an_event_that_is_due_again_is_made_once() -> None:
    loop = Loop(period=1)
    loop.go(10, LAST)
    assert loop.steps == [1, 2, 3, 4, 5, 7, 8, 9]


def test_the_outcome_of_the_step_that_makes_up_matters() -> None:
    loop = Loop()
    loop.go(LAST, LAST)
    assert loop.sparse.needs_outcome(LAST + 1) and loop.sparse.wants_whole_gradients
    loop.go(LAST + 2)
    assert not loop.sparse.needs_outcome(LAST + 3) and not loop.sparse.wants_whole_gradients


def test_a_saved_state_makes_up_too() -> None:
    whole, saved = Loop(), Loop()
    for loop in (whole, saved):
        loop.go(LAST, LAST)
    resumed = Loop(saved.sparse.state_dict(), copy.deepcopy(saved.model))
    for loop in (whole, resumed):
        loop.go(10)
    assert resumed.steps == [7, 8]
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    whole.sparse.load_state_dict(whole.sparse.state_dict())
    assert "owed" not in whole.sparse.state_dict()


@pytest.mark.parametrize("owed", [0, 7, "6", 5.5, 6.0, True, torch.tensor(6)])
def test_a_state_that_owes_an_event_of_no_step_is_refused(owed: Any) -> None:
    loop = Loop()
    loop.go(LAST)
    state = {**loop.sparse.state_dict(), "owed": owed}
    with pytest.raises(UserError, match="the state is damaged"):
        loop.sparse.load_state_dict(state)


@pytest.mark.parametrize("name", ["static", "set"])
def test_a_state_that_owes_what_its_method_never_does_is_refused(name: str) -> None:
    model = mlp()
    sparse = SparseTraining(model, optim.SGD(model.parameters(), lr=0.1), {"name": name}, sparsity=0.9, total_steps=10)
    sparse.skip_step()
    with pytest.raises(UserError, match="the state is damaged"):
        sparse.load_state_dict({**sparse.state_dict(), "owed": 1})


def test_a_state_loaded_after_a_backward_pass_decides_which_gradients_are_whole() -> None:
    """A backward pass before has asked the same of the same step, which owed nothing then."""
    loop = Loop()
    loop.go(LAST, LAST)
    state = loop.sparse.state_dict()
    loop.sparse.owed_event = None
    loss_of(loop.model).backward()
    assert not loop.sparse.wants_whole_gradients
    loop.sparse.load_state_dict(state)
    assert loop.sparse.wants_whole_gradients


def test_only_the_next_step_makes_up() -> None:
    loop = Loop()
    loop.go(LAST, LAST)
    whole = [step for step in range(1, 11) if loop.sparse.wants_whole_gradients_in(step)]
    assert whole == [step for step in range(1, 11) if loop.sparse.needs_outcome(step)] == [2, 4, 6, 7, 8]


def test_after_the_last_step_nothing_grows_and_the_density_falls() -> None:
    """Density and exchange are due in step 9 of 10; what grows after the last step would never train."""
    loop = Loop(period=3, density={**DENSITY, "end": 0.9})
    loop.go(10, 9)
    assert loop.steps == [3, 6, 10]
    assert not any(loop.events[-1].grown.values())
    assert loop.sparse.masks.active_weights == ACTIVE


def test_after_the_last_step_an_exchange_is_left_out() -> None:
    loop = Loop(period=3)
    loop.go(10, 9)
    assert loop.steps == [3, 6]


def test_an_epoch_counts_as_settled_unless_the_density_is_to_fall() -> None:
    for period, skipped, settled in ((2, LAST, False), (3, 9, True)):
        loop = Loop(period=period)
        loop.go(skipped, skipped)
        clock = loop.sparse.clock(loop.sparse.steps)
        assert loop.sparse.method.is_settled(clock)
        assert loop.sparse.reallocator.is_settled(clock) == settled


def test_a_change_of_density_that_nothing_can_make_up_for_is_said(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    with caplog.at_level(logging.WARNING):
        loop.go(10, *range(LAST, 11))
    assert "step 10, the last of the run, was skipped, and with it the change of density of step 6" in caplog.text
    assert loop.steps == [2, 4]
