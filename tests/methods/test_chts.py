"""CHTs worked by hand: what falls, what grows, how softly, and what it reads of gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.methods import Clock
from dynsparse.methods.chts import ChtsSettings
from dynsparse.reallocation import Reallocator
from tests.methods.test_contract import STEPS, Run, assert_same, assert_zero_outside

EXACT = {"soft_drop": 0, "final_soft_drop": 0, "soft_growth": 0}
SIGMOID: dict[str, Any] = {"density": {"name": "sigmoid", "start": 0.5, "end": 0.4}, "removal": "relative"}
WEIGHTS = [[0.9, 0.8, 0.0], [0.0, 0.7, 0.1], [0.0, 0.6, 0.0]]


def reallocated(settings: ChtsSettings, optimizer: Any = torch.optim.SGD, seed: int = 0) -> Reallocator:
    """Three outputs of three inputs after an event."""
    model = nn.Linear(3, 3, bias=False)
    active = torch.tensor(WEIGHTS).view(-1).nonzero().squeeze(1)
    masks = MaskSet(model, sparse_layers(model), {"weight": active})
    with torch.no_grad():
        model.weight.copy_(torch.tensor(WEIGHTS))
    model.weight.grad = torch.ones(3, 3)
    method = settings.build()
    method.prepare(masks)
    reallocator = Reallocator(model, masks, method, optimizer(model.parameters(), lr=0.0), seed=seed)
    clock = Clock(1, 0, steps_per_epoch=100, epochs=1)
    seen = reallocator.before_step(clock)
    reallocator.optimizers[0].step()
    assert reallocator.after_step(clock, seen) is not None
    return reallocator


def test_worked_by_hand() -> None:
    """A fifth of five links is one: .1 falls, which links output 1 with input 2. All others have the same score, 3.

    1 1 .     The first grows: output 0, input 2. What fell has no score, and does not return.
    . 1 1
    . 1 .
    """
    (layer,) = reallocated(ChtsSettings(name="chts", period=1, fraction=0.2, **EXACT)).masks
    assert layer.active.tolist() == [0, 1, 2, 4, 7]


def test_growth_by_a_larger_score() -> None:
    """No path leads to output 3 or input 3, which have one link, to each other: none of their pairs grows.

    In 40 draws by score it is as if they were not there.
    """
    for seed in range(40):
        model = nn.Linear(4, 4, bias=False)
        links = torch.zeros(4, 4)
        links[:3, :3] = torch.tensor(WEIGHTS)
        links[3, 3] = 1.0
        masks = MaskSet(model, sparse_layers(model), {"weight": links.view(-1).nonzero().squeeze(1)})
        method = ChtsSettings(name="chts", period=1, fraction=0.5).build()
        reallocator = Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=0.0), seed=seed)
        before = set(masks.layers[0].active.tolist())
        reallocator.after_step(Clock(1, 0, 100, 1))
        grown = {divmod(unit, 4) for unit in set(masks.layers[0].active.tolist()) - before}
        assert len(grown) == 3
        assert grown < {(0, 2), (1, 0), (2, 0), (2, 2)}


def test_draws_become_sharper_until_the_end() -> None:
    """The power goes from 1 to 9 in a straight line. At 64 the lowest of the weights falls for sure."""
    method = ChtsSettings(name="chts").build()
    powers = [method.soft_drop_at(Clock(step, 0, steps_per_epoch=80, epochs=1)) for step in (1, 10, 40, 75, 80)]
    assert powers == [1, 2, 5, 8, 9]
    falls = {}
    for last in (1, 64):
        settings = ChtsSettings(name="chts", period=1, fraction=0.2, soft_drop=last, final_soft_drop=last)
        runs = [reallocated(settings, seed=seed) for seed in range(30)]
        falls[last] = sum(5 not in run.masks.layers[0].active.tolist() for run in runs)
    assert falls[1] < falls[64] == 30


def test_relative_importance_spares_the_only_link_of_a_neuron() -> None:
    """One of five falls. By magnitude that were .1, all that input 2 has.

    weights   .9    .8    .7    .1    .6
    output    9/17  8/17  7/8   1/8   1
    input     1     8/21  7/21  1     6/21
    sum       1.53  0.85  1.21  1.13  1.29    .8 falls, at unit 1; unit 2 is the first that may grow
    """
    settings = ChtsSettings(name="chts", period=1, fraction=0.2, removal="relative", **EXACT)
    (layer,) = reallocated(settings).masks
    assert layer.active.tolist() == [0, 2, 4, 5, 7]


def test_scores_are_no_gradients_for_adam() -> None:
    """A weight that grows begins with the layer's mean second moment, whatever its score."""
    settings = ChtsSettings(name="chts", period=1, fraction=0.2, **EXACT)
    reallocator = reallocated(settings, torch.optim.Adam)
    layer = reallocator.masks.layers[0]
    moments = reallocator.optimizers[0].state[layer.parameter]["exp_avg_sq"]
    assert moments[0, 2] > 0
    assert torch.equal(moments[0, 2], moments[0, 0]), "all gradients were the same"


def test_no_gradient_is_wanted_and_layers_without_one_move_too() -> None:
    run = Run("chts", 4, 0.5, "sgd")
    assert not any(run.reallocator.wants_whole_gradients(Clock(step, 0, 8, 2)) for step in range(1, 9))
    assert run.reallocator.after_skipped_step(Clock(2, 0, 8, 2)) is not None


def test_a_density_along_a_sigmoid_and_resuming_at_every_step() -> None:
    """CHTss, with relative importance."""
    run = Run("chts", 4, 0.8, "adamw", **SIGMOID)
    saved, counts = [], []
    for number in range(1, STEPS + 1):
        run.step(number)
        run.masks.check()
        assert_zero_outside(run)
        saved.append(run.save())
        counts.append(run.masks.active_weights)
    assert counts == sorted(counts, reverse=True)
    assert run.masks.sparsity == pytest.approx(0.8, abs=0.02)
    for done, state in enumerate(saved, start=1):
        resumed = Run("chts", 4, 0.8, "adamw", **SIGMOID)
        resumed.load(state)
        for number in range(done + 1, STEPS + 1):
            resumed.step(number)
        assert_same(run, resumed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"soft_drop": 0}, "soft_drop is 0 and final_soft_drop is 9; 0 draws nothing: set both to 0, or none"),
        ({"final_soft_drop": 0}, "soft_drop is 1 and final_soft_drop is 0"),
        ({"final_soft_drop": 65}, "less than or equal to 64"),
        ({"removal": "gradient"}, "'magnitude' or 'relative'"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ChtsSettings(name="chts", **options)
