"""One threshold over several layers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.parts.live_memory import as_on_gpu
from dynsparse.masks import joint
from dynsparse.masks.joint import joint_counts

KINDS = (torch.float32, torch.float64)
SCORES = st.lists(
    st.lists(st.sampled_from([-2.0, -0.5, -0.0, 0.0, 1e-38, 0.5, 1.0, 3.0, math.inf]), min_size=1, max_size=12),
    min_size=1,
    max_size=4,
)


def test_the_example_of_the_docstring() -> None:
    scores = [torch.tensor([1.0, 5.0, 2.0]), torch.tensor([3.0, 4.0])]
    assert joint_counts(scores, [1, 1], 3, [0, 0], [2, 2]) == [2, 1]
    assert joint_counts(scores, [1, 1], 4, [0, 0], [2, 2]) == [2, 2], "the first gives no more"
    assert joint_counts(scores, [1, 1], 3, [0, 2], [2, 2]) == [1, 2], "the second gives two at least"
    assert joint_counts(scores, [1, 1], 9, [0, 0], [3, 2]) == [3, 2]
    assert joint_counts(scores, [1, 1], 0, [0, 0], [3, 2]) == [0, 0]


@settings(max_examples=100)
@given(scores=SCORES, data=st.data())
def test_it_takes_the_lowest_of_all(scores: list[list[float]], data: st.DataObject) -> None:
    """Compare it with a sort of all scores, one unit after another."""
    least = [data.draw(st.integers(0, len(layer))) for layer in scores]
    most = [data.draw(st.integers(low, len(layer))) for low, layer in zip(least, scores, strict=True)]
    weights = data.draw(st.integers(0, sum(map(len, scores))))
    rest = [1] * len(scores), weights, least, most
    counts = joint_counts([torch.tensor(layer) for layer in scores], *rest)
    expected = list(least)
    by_score = sorted((score, i) for i, layer in enumerate(scores) for score in sorted(layer)[least[i] :])
    for _, i in by_score:
        if sum(expected) < weights and expected[i] < most[i]:
            expected[i] += 1
    with pytest.MonkeyPatch.context() as patch, as_on_gpu():
        patch.setattr(joint, "MOST", 0)  # Four bits a pass.
        again = [joint_counts([torch.tensor(layer, dtype=kind) for layer in scores], *rest) for kind in KINDS]
    assert again == [counts, joint_counts([torch.tensor(layer).double() for layer in scores], *rest)]
    assert sum(counts) == sum(expected)
    assert all(low <= count <= high for low, count, high in zip(least, counts, most, strict=True))
    taken = [score for count, layer in zip(counts, scores, strict=True) for score in sorted(layer)[:count]]
    assert sorted(taken) == sorted(
        score for count, layer in zip(expected, scores, strict=True) for score in sorted(layer)[:count]
    )


@settings(max_examples=100)
@given(scores=SCORES, sizes=st.lists(st.integers(1, 5), min_size=4, max_size=4), data=st.data())
def test_units_of_several_weights_fall_short_by_less_than_one(
    scores: list[list[float]], sizes: list[int], data: st.DataObject
) -> None:
    sizes, none, all_units = sizes[: len(scores)], [0] * len(scores), [len(layer) for layer in scores]
    whole = sum(size * count for size, count in zip(sizes, all_units, strict=True))
    weights = data.draw(st.integers(0, whole))
    counts = joint_counts([torch.tensor(layer) for layer in scores], sizes, weights, none, all_units)
    total = sum(size * count for size, count in zip(sizes, counts, strict=True))
    assert weights - max(sizes) < total <= weights
