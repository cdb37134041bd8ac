from __future__ import annotations

import pytest
import torch

from dynsparse.methods import Clock
from dynsparse.methods.sparse_momentum import SparseMomentumSettings
from dynsparse.schedules import StepTable
from tests.methods.hand import by_hand, set_gradient


def test_worked_by_hand() -> None:
    """Momentum 0.5 over two steps, then a reallocation half way through the run: 0.5 (1 + cos 90) / 2 = 0.25.

    A  weights    .8  .6 -.5  .1   0   0   0   0   0   0   0   0
       gradient 1 -4   0   0   0   0  -2   0   0   0   0   0   0
       gradient 2  0   2   0   2   0  -3   0   1   0   0   0   0
       momentum   -2   2   0   2   0  -4   0   1   0   0   0   0    mean of |.| over the active: 6 / 4 = 1.5
    B  weights    .9  .7  .3  .2   0   0   0   0
       gradient 2  1   1   0   0   0   7   0   0
       momentum    1   1   0   0   0   7   0   0                    mean of |.| over the active: 2 / 4 = 0.5

    Each drops 0.25 of four, one: .1 in A, .2 in B. Two are freed, shares 1.5 : 0.5, quotas 1.5 and 0.5:
    floors 1 and 0, equal remainders, the first takes the rest: A grows two, B none. (The means of the signed
    momentum would be equal, 0.5 and 0.5.)
    A's largest |momentum| among the free: |-4| at position 5, 1 at 7; position 3 (2) was dropped just now.
    """
    a = [0.8, 0.6, -0.5, 0.1] + [0.0] * 8
    b = [0.9, 0.7, 0.3, 0.2] + [0.0] * 4
    settings = SparseMomentumSettings(name="sparse_momentum", momentum=0.5, fraction=0.5, period=StepTable(((0, 2),)))
    reallocator = by_hand(settings, [a, b], lr=0.0)
    first, second = reallocator.masks
    for step, gradients in enumerate(
        (
            ([-4, 0, 0, 0, 0, -2, 0, 0, 0, 0, 0, 0], [0] * 8),
            ([0, 2, 0, 2, 0, -3, 0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 7, 0, 0]),
        ),
        start=1,
    ):
        set_gradient(first, [float(g) for g in gradients[0]])
        set_gradient(second, [float(g) for g in gradients[1]])
        clock = Clock(step, 0, steps_per_epoch=2, epochs=2)
        seen = reallocator.before_step(clock)
        report = reallocator.after_step(clock, seen)
    assert report is not None
    assert reallocator.method.momentum["0.weight"].flatten()[:6].tolist() == [-2, 2, 0, 2, 0, -4]  # type: ignore[attr-defined]
    assert list(report.dropped.values()) == [1, 1]
    assert list(report.grown.values()) == [2, 0]
    assert first.active.tolist() == [0, 1, 2, 5, 7]
    assert second.active.tolist() == [0, 1, 2]


def test_by_default_once_an_epoch() -> None:
    method = SparseMomentumSettings(name="sparse_momentum", stop_epoch=2).build()
    due = [step for step in range(1, 41) if method.is_due(Clock(step, (step - 1) // 10, steps_per_epoch=10, epochs=4))]
    assert due == [10, 20]


def test_the_momentum_is_saved() -> None:
    reallocator = by_hand(SparseMomentumSettings(name="sparse_momentum"), [[0.8, 0.6, 0, 0]])
    layer = reallocator.masks.layers[0]
    set_gradient(layer, [1.0, 2, 3, 4])
    reallocator.before_step(Clock(1, 0, steps_per_epoch=10))
    saved = reallocator.method.state_dict()
    other = by_hand(SparseMomentumSettings(name="sparse_momentum"), [[0.8, 0.6, 0, 0]])
    other.method.load_state_dict(saved)
    scores = other.method.grow_scores(other.masks.layers[0])
    assert scores is not None
    assert scores.tolist() == pytest.approx([1, 2, 3, 4])
    assert torch.equal(saved["momentum"]["0.weight"], torch.tensor([[1.0, 2, 3, 4]]))
