"""MEST worked by hand, and its soft memory bound under the contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dynsparse import SparseTraining
from dynsparse.errors import UserError
from dynsparse.methods import Aim, Clock
from dynsparse.methods.mest import MestSettings
from tests.methods.hand import by_hand, set_gradient, set_weights, values
from tests.methods.test_contract import STEPS, Run, assert_same, assert_zero_outside

WEIGHTS = [0.5, -0.1, 0.3, 0.2, 0.4, 0, 0, 0, 0, 0]
GRADIENT = [0.0, -5, 0, 2, 0, 9, 9, 9, 9, 9]
BOUND: dict[str, Any] = {"soft_bound": True, "density": {"name": "steps", "start": 0.5, "at": [0.2, 0.4]}}


def clock(step: int) -> Clock:
    return Clock(step, 0, steps_per_epoch=100, epochs=1)


def test_a_weight_falls_by_magnitude_and_gradient() -> None:
    """A fifth of five weights is one.

    weights              .5  -.1   .3   .2   .4    by magnitude -.1 would fall
    |gradients|           0    5    0    2    0    those of inactive weights do not count
    |w| + 0.1 |gradient| .5   .6   .3   .4   .4    the lowest falls: .3 at position 2
    """
    reallocator = by_hand(MestSettings(name="mest", period=1, gradient_weight=0.1), [WEIGHTS])
    (layer,) = reallocator.masks
    set_gradient(layer, GRADIENT)
    seen = reallocator.before_step(clock(1))
    report = reallocator.after_step(clock(1), seen)
    assert report is not None
    assert (report.dropped, report.grown) == ({"0.weight": 1}, {"0.weight": 1})
    assert set(layer.active.tolist()) & set(range(5)) == {0, 1, 3, 4}
    assert values(layer)[2] == 0


def test_the_fraction_falls_in_steps_and_then_nothing_moves() -> None:
    """Two of five weights at 0.4, then one, then none. Between events no gradient is copied."""
    settings = MestSettings(name="mest", period=10, fraction=0.4, lower_at=[0.3, 0.6])
    reallocator = by_hand(settings, [WEIGHTS])
    moved = {}
    for step in range(1, 101):
        set_gradient(reallocator.masks.layers[0], GRADIENT)
        copied = reallocator.look(clock(step), reallocator.masks).observed
        assert bool(copied) == reallocator.is_due(clock(step))
        seen = reallocator.before_step(clock(step))
        if (report := reallocator.after_step(clock(step), seen)) is not None:
            moved[step] = report.dropped["0.weight"]
    assert moved == {10: 2, 20: 2, 30: 1, 40: 1, 50: 1}


def test_a_soft_bound_is_lowered_until_it_is_the_density() -> None:
    """Ten weights, half of them at first and two in the end.

    Each event drops down to the two largest. It grows to five before 0.2 of the run, to 3.5 before 0.4, which is
    rounded to four, and not at all from then on.
    """
    settings = MestSettings(name="mest", period=10, **BOUND).knowing(Aim({"conv": 0.8, "fc": 0.8}))
    reallocator = by_hand(settings, [WEIGHTS])
    (layer,) = reallocator.masks
    counts = {}
    for step in range(1, 101):
        if (report := reallocator.after_step(clock(step))) is not None:
            counts[step] = (report.dropped["0.weight"], report.grown["0.weight"])
            kept = [value for value in values(layer) if value]
            assert sorted(kept) == [0.4, 0.5], "what has grown begins at 0"
            set_weights(layer, [v or (0.01 if unit in layer.active else 0) for unit, v in enumerate(values(layer))])
    assert counts == {10: (3, 3), 20: (3, 2), 30: (2, 2), 40: (2, 0)}
    assert layer.active.tolist() == [0, 4]


def test_a_skipped_step_counts_no_gradient() -> None:
    """After a step that a loss scaler skipped the magnitude alone decides, whatever the event before has seen.

    That one drops .3, as above. Its gradients would spare -.1 again; it falls.
    """
    reallocator = by_hand(MestSettings(name="mest", period=1, gradient_weight=0.1), [WEIGHTS])
    (layer,) = reallocator.masks
    set_gradient(layer, GRADIENT)
    reallocator.after_step(clock(1), reallocator.before_step(clock(1)))
    set_weights(layer, [v or (0.35 if unit in layer.active else 0) for unit, v in enumerate(values(layer))])
    set_gradient(layer, GRADIENT)
    reallocator.look(clock(2), reallocator.masks)
    assert reallocator.after_skipped_step(clock(2)) is not None
    assert 1 not in layer.active
    assert {0, 3, 4} < set(layer.active.tolist())


def test_gradients_of_several_passes_count_together() -> None:
    """Two backward passes of .5 each in a loop of one's own: as one of 1. The optimizer's rate is 0."""
    model = nn.Linear(10, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = {"name": "mest", "period": 1, "gradient_weight": 0.1}
    mask = torch.tensor([WEIGHTS]).ne(0)
    sparse = SparseTraining(model, optimizer, options, masks={"weight": mask}, total_steps=10)
    set_weights(sparse.masks.layers[0], WEIGHTS)
    for _ in range(2):
        (model.weight * torch.tensor([GRADIENT]) / 2).sum().backward()
    optimizer.step()
    assert set(sparse.masks.layers[0].active.tolist()) & set(range(5)) == {0, 1, 3, 4}


@pytest.mark.parametrize("granularity", [4, 2])
def test_a_soft_bound_keeps_the_contract(granularity: int) -> None:
    """Density, zeros outside the masks, and resuming at every step."""
    run = Run("mest", granularity, 0.8, "adamw", **BOUND)
    counts, saved = [], []
    for number in range(1, STEPS + 1):
        run.step(number)
        run.masks.check()
        assert_zero_outside(run)
        counts.append(run.masks.sparsity)
        saved.append(run.save())
    assert counts == pytest.approx([0.5, 0.5, 0.5, 0.65, 0.65, 0.65, 0.65, 0.8], abs=0.02)
    for done, state in enumerate(saved, start=1):
        resumed = Run("mest", granularity, 0.8, "adamw", **BOUND)
        resumed.load(state)
        for number in range(done + 1, STEPS + 1):
            resumed.step(number)
        assert_same(run, resumed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"soft_bound": True}, "no density says by how much: give one, such as density: {name: steps, start: 0.85}"),
        ({"fraction": 0.3, **BOUND}, "fraction and lower_at have no effect with soft_bound"),
        ({"lower_at": [0.5], **BOUND}, "fraction and lower_at have no effect with soft_bound"),
        ({"lower_at": [0.5, 0.4]}, r"\[0.5, 0.4\] does not rise"),
        ({"gradient_weight": -1.0}, "greater than or equal to 0"),
        ({"fraction": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MestSettings(name="mest", **options)


def test_a_soft_bound_below_the_final_density() -> None:
    settings = MestSettings(name="mest", **BOUND)
    with pytest.raises(
        UserError, match=r"starts with 0.5 zeros, and sparsity.fc is 0.4: a soft bound lets layers hold"
    ):
        settings.knowing(Aim({"conv": 0.0, "fc": 0.4})).build().check([], {})
    settings.knowing(Aim({"conv": 0.0, "fc": 0.6})).build().check([], {})
    with pytest.raises(UserError, match="no sparsity is given to end with: give one"):
        settings.build().check([], {})
