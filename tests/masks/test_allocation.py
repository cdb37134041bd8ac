from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec
from dynsparse.masks.allocation import erk, share_out, uniform

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


def test_erk_worked_by_hand() -> None:
    """20 x 10 and 3 x 2 at sparsity 0.8: 40 + 1 = 41 weights, shared as 30 : 5, the sums of the dimensions.

    Quotas 35.14 and 5.86: floors 35 and 5, the one left over goes to the larger remainder: the small layer is full.
    At sparsity 0.5 there are 103 weights: the small layer would get 14.7 of its 6, the rest goes to the other.
    """
    specs = [LayerSpec("a", "fc", (20, 10), 2), LayerSpec("b", "fc", (3, 2), 2)]
    assert erk(specs, {"fc": 0.8}) == {"a": 35, "b": 6}
    assert erk(specs, {"fc": 0.5}) == {"a": 97, "b": 6}
    assert erk(specs, {"fc": 0.0}) == {"a": 200, "b": 6}


def test_erk_leaves_a_unit_in_every_layer() -> None:
    """1 x 2 beside 1,000 x 1,000 at 0.9999: 100 + 1 weights, shared as 2,000 : 3, quota 0.15."""
    specs = [LayerSpec("a", "fc", (1000, 1000), 2), LayerSpec("b", "fc", (1, 2), 2)]
    assert erk(specs, {"fc": 0.9999}) == {"a": 101, "b": 1}


def test_erk_counts_the_kernel_too() -> None:
    """(64, 32, 3, 3) and (64, 32, 1, 1): density in proportion to sum over product of the dimensions, 102 and 98."""
    specs = [LayerSpec("a", "conv", (64, 32, 3, 3), 4), LayerSpec("b", "conv", (64, 32, 1, 1), 4)]
    counts = erk(specs, {"conv": 0.9})
    assert sum(counts.values()) == sum(uniform(specs, {"conv": 0.9}).values())
    assert counts["a"] / counts["b"] == pytest.approx(102 / 98, rel=0.01)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6), st.fractions(0, 0.99))
def test_erk_has_the_total_of_uniform_and_is_denser_where_layers_are_small(
    shapes: list[tuple[int, int]], sparsity: Fraction
) -> None:
    specs = [LayerSpec(str(i), "fc", shape, 2) for i, shape in enumerate(shapes)]
    share = {"fc": round(float(sparsity), 3)}
    counts = erk(specs, share)
    total = sum(uniform(specs, share).values())
    assert all(1 <= counts[spec.name] <= spec.units for spec in specs)
    empty = sum(count == 1 for count in counts.values())
    assert total <= sum(counts.values()) <= total + empty, "at least one each, else the total exactly"
    for a in specs:
        for b in specs:
            if sum(a.shape) / a.units > sum(b.shape) / b.units:  # To within the unit that rounding moves.
                assert (counts[a.name] + 1) / a.units >= (counts[b.name] - 1) / b.units


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
    """Two open layers with single weights differ from their common proportion by less than one weight each."""
    shares, capacity = (list(column) for column in zip(*layers, strict=True))
    got = share_out(total, shares, capacity, [1] * len(layers))
    assert sum(got) == min(total, sum(capacity))
    rate = [Fraction(units, share) for units, share in zip(got, shares, strict=True)]
    for i, (units, share, full) in enumerate(zip(got, shares, capacity, strict=True)):
        for j in range(len(layers)):
            if units < full:  # Nobody may have more for its share than an open layer, but for the rounding.
                assert rate[j] - Fraction(1, shares[j]) <= rate[i] + Fraction(1, share)
