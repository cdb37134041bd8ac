from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec
from dynsparse.masks.allocation import share_out, uniform

layers_st = st.lists(
    st.tuples(st.fractions(0, 50), st.integers(0, 30), st.sampled_from([1, 3, 9])), min_size=1, max_size=8
)


def test_uniform_densities_by_kind() -> None:
    specs = [
        LayerSpec("conv", "conv", (8, 4, 3, 3), mask_dims=4),
        LayerSpec("slices", "conv", (8, 4, 3, 3), mask_dims=2),
        LayerSpec("fc", "fc", (10, 100), mask_dims=2),
    ]
    assert uniform(specs, {"conv": 0.75, "fc": 0.98}) == {"conv": 72, "slices": 8, "fc": 20}


def test_uniform_keeps_a_unit_in_every_layer() -> None:
    assert uniform([LayerSpec("a", "fc", (3, 4), 2)], {"fc": 0.999}) == {"a": 1}


def test_uniform_rounds_decimals_as_written() -> None:
    """0.9 of 10 is 9 inactive, though 10 * (1 - 0.9) is 0.99999... in floating point."""
    assert uniform([LayerSpec("a", "fc", (1, 10), 2)], {"fc": 0.9}) == {"a": 1}
    assert uniform([LayerSpec("a", "fc", (5, 5), 2)], {"fc": 0.0}) == {"a": 25}


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 2.0])
def test_uniform_refuses(sparsity: float) -> None:
    with pytest.raises(UserError, match=r"sparsity\.fc is .*at least 0 and below 1"):
        uniform([], {"fc": sparsity})


def test_share_out_by_largest_remainder() -> None:
    # Quotas of 10 over 1:2:4 are 1.43, 2.86, 5.71: floors 1, 2, 5; remainders .43, .86, .71.
    assert share_out(10, [1, 2, 4], [99, 99, 99], [1, 1, 1]) == [1, 3, 6]


def test_share_out_gives_equal_remainders_to_the_first() -> None:
    assert share_out(2, [1, 1, 1], [9, 9, 9], [1, 1, 1]) == [1, 1, 0]


def test_share_out_hands_on_what_does_not_fit() -> None:
    # Quotas 6, 3, 3; the first takes 2 of its 6, the other four go on in equal parts.
    assert share_out(12, [2, 1, 1], [2, 99, 99], [1, 1, 1]) == [2, 5, 5]


def test_share_out_uses_layers_without_a_share_last() -> None:
    assert share_out(7, [1, 0], [3, 10], [1, 1]) == [3, 4]


def test_share_out_in_units_leaves_less_than_a_unit() -> None:
    # 20 weights in halves of 10: units of 9 and 1 give 1 x 9 + 11 x 1, whole.
    assert share_out(20, [1, 1], [5, 50], [9, 1]) == [1, 11]
    # Only units of 9: 2 x 9, and 2 weights wait for the next time.
    assert share_out(20, [1, 1], [5, 5], [9, 9]) == [1, 1]


@given(st.integers(0, 400), layers_st)
def test_share_out_is_exact_and_within_capacity(total: int, layers: list[tuple[Fraction, int, int]]) -> None:
    shares, capacity, sizes = (list(column) for column in zip(*layers, strict=True))
    given_units = share_out(total, shares, capacity, sizes)
    assert all(0 <= units <= full for units, full in zip(given_units, capacity, strict=True))
    left = total - sum(units * size for units, size in zip(given_units, sizes, strict=True))
    assert left >= 0
    open_sizes = [s for s, units, full in zip(sizes, given_units, capacity, strict=True) if units < full]
    assert all(left < size for size in open_sizes), "a unit that fits was not given"


@given(st.integers(0, 400), st.lists(st.tuples(st.integers(1, 50), st.integers(0, 60)), min_size=1, max_size=8))
def test_share_out_is_proportional_where_it_can_be(total: int, layers: list[tuple[int, int]]) -> None:
    """With single weights, two open layers differ from their common proportion by less than one weight each."""
    shares, capacity = (list(column) for column in zip(*layers, strict=True))
    got = share_out(total, shares, capacity, [1] * len(layers))
    assert sum(got) == min(total, sum(capacity))
    rate = [Fraction(units, share) for units, share in zip(got, shares, strict=True)]
    for i, (units, share, full) in enumerate(zip(got, shares, capacity, strict=True)):
        for j in range(len(layers)):
            if units < full:  # Nobody may have more for its share than an open layer, but for the rounding.
                assert rate[j] - Fraction(1, shares[j]) <= rate[i] + Fraction(1, share)
