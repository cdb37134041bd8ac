"""Courses of the density, as numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from dynsparse.schedules import AlternatingDensity, AnyDensity, CubicDensity, SigmoidDensity, StepDensity


def test_the_cubic_is_that_of_zhu_and_gupta() -> None:
    """Eq. 1: s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, here from 0.2 to 0.9."""
    course = CubicDensity(name="cubic", start=0.2, begin=0.25, end=0.75)
    for progress in (0.25, 0.3, 0.5, 0.6, 0.75):
        sparsity = 0.9 + (0.2 - 0.9) * (1 - (progress - 0.25) / 0.5) ** 3
        assert 0.2 + (0.9 - 0.2) * course.share(progress, 0) == pytest.approx(sparsity)


def test_the_sigmoid_is_half_way_in_the_middle() -> None:
    course = SigmoidDensity(name="sigmoid", begin=0.2, end=0.6, steepness=6)
    assert course.share(0.4, 0) == pytest.approx(0.5)
    at_quarter = (1 / (1 + math.exp(3)) - 1 / (1 + math.exp(6))) / (1 / (1 + math.exp(-6)) - 1 / (1 + math.exp(6)))
    assert course.share(0.3, 0) == pytest.approx(at_quarter)


def test_phases_in_turn() -> None:
    """The example of the docstring."""
    course = AlternatingDensity(
        name="alternating", warmup_epochs=1, dense_epochs=1, sparse_epochs=2, last_sparse_epoch=8
    )
    assert [course.share(0.0, epoch) for epoch in range(10)] == [0, 1, 1, 0, 1, 1, 0, 0, 1, 1]
    assert [course.is_final(0.0, epoch) for epoch in (7, 8, 9)] == [False, True, True]


def test_phases_are_those_of_the_authors_on_imagenet() -> None:
    """They prune at epochs 10, 20, ... 70 and 85, and restore all weights at 15, 25, ... 65 and 75.

    So epochs 75 to 84 are dense, ten in place of five. The figures are those of their configs for ResNet-50.
    """
    pruned, restored = [*range(10, 71, 10), 85], [*range(15, 66, 10), 75]
    course = AlternatingDensity(name="alternating")
    sparse = [course.share(0.0, epoch) for epoch in range(100)]
    assert [epoch for epoch in range(1, 100) if sparse[epoch] > sparse[epoch - 1]] == pruned
    assert [epoch for epoch in range(1, 100) if sparse[epoch] < sparse[epoch - 1]] == restored


@given(lengths=st.lists(st.integers(1, 6), min_size=3, max_size=3), last=st.integers(1, 40))
def test_the_epoch_before_the_last_sparse_phase_is_dense(lengths: list[int], last: int) -> None:
    warmup, sparse, dense = min(lengths[0], last), *lengths[1:]
    course = AlternatingDensity(
        name="alternating", warmup_epochs=warmup, sparse_epochs=sparse, dense_epochs=dense, last_sparse_epoch=last
    )
    shares = [course.share(0.0, epoch) for epoch in range(50)]
    assert shares[last - 1] == 0 and set(shares[last:]) == {1}
    lasting = "".join(str(int(one)) for one in shares[:last]).split("0")
    assert {len(phase) for phase in lasting} <= {0, sparse}, "no phase is cut short"


def test_steps_at_fractions_of_the_run() -> None:
    """Three steps of a third each: the density has its final value from the last one on."""
    course = StepDensity(name="steps", at=[0.25, 0.5, 0.75])
    assert [course.share(place, 0) for place in (0, 0.24, 0.25, 0.5, 0.74, 0.75, 1)] == [
        0,
        0,
        1 / 3,
        2 / 3,
        2 / 3,
        1,
        1,
    ]
    assert [course.is_final(place, 0) for place in (0.74, 0.75)] == [False, True]


@given(
    kind=st.sampled_from([CubicDensity, SigmoidDensity]),
    ends=st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True),
    places=st.lists(st.floats(0, 1), min_size=2, max_size=2),
)
def test_a_gradual_course_goes_one_way_from_0_to_1(kind: Any, ends: list[float], places: list[float]) -> None:
    begin, end = sorted(ends)
    course = kind(name=kind.model_fields["name"].annotation.__args__[0], begin=begin, end=end)
    earlier, later = (course.share(place, 0) for place in sorted(places))
    assert 0 <= earlier <= later <= 1
    assert (course.share(begin, 0), course.share(end, 0)) == (0, 1)
    assert course.is_final(end, 0)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"name": "cubic", "begin": 0.8, "end": 0.8}, "begin is 0.8 and end is 0.8; the density changes in between"),
        ({"name": "cubic", "start": 1.0}, "less than 1"),
        ({"name": "alternating", "sparse_epochs": 0}, "greater than or equal to 1"),
        (
            {"name": "alternating", "last_sparse_epoch": 9},
            "warmup_epochs is 10 and last_sparse_epoch is 9: the network would be sparse before its dense warm-up",
        ),
        ({"name": "steps", "at": []}, "at least 1 item"),
        ({"name": "steps", "at": [0.5, 0.5]}, r"\[0.5, 0.5\] does not rise; give fractions of the run"),
        ({"name": "steps", "at": [0.0, 0.5]}, "greater than 0"),
        ({"name": "steps", "at": [0.5, 1.5]}, "less than or equal to 1"),
        ({"name": "linear"}, "does not match any of the expected tags"),
    ],
)
def test_courses_that_are_none(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(AnyDensity).validate_python(raw)
