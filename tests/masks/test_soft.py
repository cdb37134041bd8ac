"""Draws by weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynsparse.masks.soft import exponentials, sharpened, soft_costs, soft_order
from dynsparse.seeds import random_bits

MANY = 40_000


def test_times_are_exponential() -> None:
    times = exponentials(3, torch.arange(MANY))
    assert times.min() >= 0
    assert times.mean().item() == pytest.approx(1, abs=0.02)
    assert times.var().item() == pytest.approx(1, abs=0.05)
    for limit in (0.01, 0.1, 1.0, 3.0):
        assert (times < limit).double().mean().item() == pytest.approx(1 - math.exp(-limit), abs=0.006)


def test_the_logarithm_is_near_the_true_one() -> None:
    """Compare the table with torch: off by 2^-25 at most, of times of about 1."""
    places = torch.arange(1000)
    uniform = ((random_bits(5, places) >> 10) + 1).double() / 2**53
    assert (exponentials(5, places) + uniform.log()).abs().max() < 2**-25


def test_places_of_a_stream_do_not_depend_on_each_other() -> None:
    assert torch.equal(exponentials(7, torch.tensor([5, 9])), exponentials(7, torch.arange(10))[[5, 9]])


def test_the_first_comes_in_proportion_to_its_weight() -> None:
    weights = torch.tensor([1.0, 3.0, 0.0, 4.0])
    first = torch.stack([soft_costs(weights, seed).argmin() for seed in range(4000)])
    found = torch.bincount(first, minlength=4) / 4000
    assert found.tolist() == pytest.approx([1 / 8, 3 / 8, 0, 1 / 2], abs=0.03)


def test_the_second_comes_in_proportion_among_those_left() -> None:
    """Weights 1, 2, 3: where the last is drawn first, a half of the time, the others follow as 1 to 2."""
    order = torch.stack([soft_costs(torch.tensor([1.0, 2.0, 3.0]), seed).argsort() for seed in range(6000)])
    after_last = order[order[:, 0] == 2]
    assert len(after_last) == pytest.approx(3000, abs=150)
    assert (after_last[:, 1] == 0).double().mean().item() == pytest.approx(1 / 3, abs=0.03)


@settings(max_examples=50)
@given(st.lists(st.floats(2**-20, 2**20, width=32), min_size=2, max_size=30), st.integers(0, 100))
def test_a_draw_is_the_same_again_and_sharper_ones_come_to_the_largest(weights: list[float], seed: int) -> None:
    tensor = torch.tensor(weights)
    assert torch.equal(soft_costs(tensor, seed), soft_costs(tensor.clone(), seed))
    base = tensor.double() / tensor.double().max()
    assert torch.equal(sharpened(tensor, 3), base * base * base)


def test_the_lowest_fall_more_often() -> None:
    """Scores 1 and 2 with the power 2: weights 1 and 1/4."""
    falls = torch.stack([soft_order(torch.tensor([1.0, 2.0]), 2, seed).argmin() for seed in range(1000)])
    assert falls.double().mean().item() == pytest.approx(1 / 5, abs=0.03)


def test_nothing_and_less_comes_last_but_comes() -> None:
    costs = soft_costs(torch.tensor([0.0, -1.0, 1e-30]), 1)
    assert costs.isfinite().all()
    assert costs.argmin() == 2
    assert soft_costs(torch.zeros(0), 1).numel() == sharpened(torch.zeros(0), 2).numel() == 0
    assert sharpened(torch.zeros(3), 2).tolist() == [0, 0, 0]
    assert soft_order(torch.tensor([1.0, math.nan]), 2, 0).isnan().any()


def test_powers_sharpen() -> None:
    weights = torch.tensor([1.0, 2.0])
    shares = [
        torch.stack([soft_costs(sharpened(weights, power), seed).argmin() for seed in range(1000)]).double().mean()
        for power in (1, 2, 8)
    ]
    assert [share.item() for share in shares] == pytest.approx([2 / 3, 4 / 5, 256 / 257], abs=0.03)
