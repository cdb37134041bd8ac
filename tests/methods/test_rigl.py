from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.methods import Clock
from dynsparse.methods.rigl import RiglSettings
from dynsparse.reallocation import Reallocator
from dynsparse.runtime import Worker
from dynsparse.schedules import StepTable
from tests.methods.hand import by_hand, set_gradient, values
from tests.ranks import run_distributed

HALF_WAY = Clock(step=50, epoch=0, steps_per_epoch=100, epochs=1)


def test_worked_by_hand() -> None:
    """Half way to the end of moving (until 1, progress 0.5) the fraction 0.8 has fallen to 0.8 / 2 = 0.4.

    weights    .5  .4 -.3  .2  .1   0   0   0   0   0     five active: 0.4 of them, 2, are dropped: .1 and .2
    gradient    9   9   9   9   9   1  -3   2   0  -.5    largest free: |-3| at 6, |2| at 7;
                                                          3 and 4 have 9, but were dropped just now
    """
    reallocator = by_hand(
        RiglSettings(name="rigl", fraction=0.8, until=1.0, period=50), [[0.5, 0.4, -0.3, 0.2, 0.1] + [0.0] * 5]
    )
    layer = reallocator.masks.layers[0]
    set_gradient(layer, [9, 9, 9, 9, 9, 1, -3, 2, 0, -0.5])
    seen = reallocator.before_step(HALF_WAY)
    report = reallocator.after_step(HALF_WAY, seen)
    assert report is not None
    assert layer.active.tolist() == [0, 1, 2, 6, 7]
    assert values(layer) == [0.5, 0.4, -0.3, 0, 0, 0, 0, 0, 0, 0]


def test_the_fraction_falls_along_a_cosine_until_the_end_of_moving() -> None:
    """0.3 at the start, 0.15 half way to 75 % of training, nothing from there on."""
    method = RiglSettings(name="rigl", period=StepTable(((0, 100),))).build()
    scores = [torch.arange(1.0, 1001.0)]

    def at(step: int) -> Clock:
        return Clock(step, 0, steps_per_epoch=1000, epochs=8)

    assert method.drop_cuts(scores, at(0))[0].count == 300
    assert method.drop_cuts(scores, at(3000))[0].count == 150
    assert method.drop_cuts(scores, at(6000))[0].count == 0
    assert [step for step in (100, 150, 5900, 6000, 7000) if method.is_due(at(step))] == [100, 5900]


def test_a_unit_counts_the_mean_of_its_gradients() -> None:
    """Kernel rows of 3: |(3, -3, 3)| is 3 on average, |(8, 0, 0)| is 2.67; the signed ones would sum to 3 and 8."""
    model = nn.Conv2d(1, 1, 3, bias=False)
    masks = MaskSet(model, sparse_layers(model, granularity=3), {"weight": 3})
    layer = masks.layers[0]
    layer.weight.grad = torch.tensor([[3.0, -3, 3], [8, 0, 0], [1, 1, 1]]).view(1, 1, 3, 3)
    scores = RiglSettings(name="rigl").build().grow_scores(layer)
    assert scores is not None
    assert scores.tolist() == pytest.approx([3, 8 / 3, 1])


# Rank r's gradient at the free positions 2 to 7 of a layer 1 x 8.
GRADIENTS = torch.tensor(
    [
        [0, 0, 9, -9, 2, 0, 1, 0],
        [0, 0, -9, 9, 2, 0, 1, 0],
        [0, 0, 9, -9, 2, 4, 1, 0],
        [0, 0, -9, 9, 2, -4, 1, 0.5],
    ]
)


def grown_on_a_rank(worker: Worker) -> list[int]:
    """The loss of rank r is w . g_r, whose gradient is g_r: the mean over ranks is what DDP leaves."""
    model = nn.Linear(8, 1, bias=False)
    masks = MaskSet(model, sparse_layers(model), {"weight": torch.tensor([0, 1])})
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.1, 0, 0, 0, 0, 0, 0]]))
    method = RiglSettings(name="rigl", fraction=1.0, until=1.0, period=1).build()
    reallocator = Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=0.0))
    clock = Clock(1, 0, steps_per_epoch=100, epochs=1)
    parallel = DistributedDataParallel(model)  # Named, for its reducer ends with it.
    parallel(GRADIENTS[worker.rank]).backward()
    seen = reallocator.before_step(clock)
    reallocator.after_step(clock, seen)
    active: list[int] = masks.layers[0].active.tolist()
    return active


def test_the_mean_gradient_is_ranked_not_the_mean_of_magnitudes() -> None:
    """Four ranks disagree. |mean|: positions 2 and 3 cancel to 0, 4 has 2, 5 has 0, 6 has 1, 7 has 0.125.

    The mean of |gradients| would be 9 at 2 and 3, 2 at 4 and 5. One weight moves (the largest, at 0, stays):
    it must grow at 4, on every rank; a rank that took its own gradient would grow at 2 or 3.
    """
    found: list[Any] = run_distributed(grown_on_a_rank, 4)
    assert found == [[0, 4]] * 4
