from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipelines.common.errors import UserError
from pipelines.split import stratified

SEEDS = st.integers(0, 2**62)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=8), st.data(), SEEDS)
def test_disjoint_complete_exact_and_proportional(members: list[int], data: st.DataObject, seed: int) -> None:
    """Classes of any size, in any order; each gives its share to within one."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(members)) * 3, members))
    count = data.draw(st.integers(0, len(labels) // 2))
    train, held_out = stratified(labels, count, seed)
    assert train.dtype == held_out.dtype == np.int64
    assert len(held_out) == count
    assert np.array_equal(np.sort(np.concatenate((train, held_out))), np.arange(len(labels)))
    assert (np.diff(train) > 0).all() and (np.diff(held_out) > 0).all()
    shares = np.bincount(labels[held_out], minlength=labels.max() + 1)[::3]
    assert (abs(shares - count * np.array(members) / len(labels)) < 1).all()


@given(SEEDS, SEEDS)
def test_another_seed_is_another_split(seed: int, other: int) -> None:
    assume(seed != other)
    labels = np.arange(400) % 4
    assert np.array_equal(stratified(labels, 100, seed)[1], stratified(labels, 100, seed)[1])
    assert not np.array_equal(stratified(labels, 100, seed)[1], stratified(labels, 100, other)[1])


def test_worked_by_hand() -> None:
    """5, 3 and 2 of 10: 3 held out are 1.5, 0.9 and 0.6, or 1, 0, 0; the two of largest remainder get more."""
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    assert np.bincount(labels[stratified(labels, 3, 0)[1]], minlength=3).tolist() == [1, 1, 1]
    assert np.bincount(labels[stratified(labels, 4, 0)[1]], minlength=3).tolist() == [2, 1, 1]


def test_the_split_is_pinned() -> None:
    """A published run must be repeatable: this changes only with a new major version."""
    assert stratified(np.arange(20) % 2, 6, 0)[1].tolist() == PINNED


PINNED = [3, 5, 6, 7, 8, 12]


def test_each_sample_is_held_out_equally_often() -> None:
    """Over 2,000 seeds each of 20 samples about 600 times (5 sigma)."""
    held_out = np.concatenate([stratified(np.arange(20) % 2, 6, seed)[1] for seed in range(2000)])
    assert abs(np.bincount(held_out, minlength=20) - 600).max() < 5 * (2000 * 0.3 * 0.7) ** 0.5


@pytest.mark.parametrize("count", [10, 11])
def test_holding_out_everything_is_refused(count: int) -> None:
    with pytest.raises(
        UserError, match=rf"validation_samples is {count}, the training set has 10 samples.*less than 10"
    ):
        stratified(np.arange(10) % 2, count, 0)


def test_emptying_a_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"validation_samples is 8; of class 5 \(1 samples\) none would be left"):
        stratified(np.array([0] * 9 + [5]), 8, 0)
