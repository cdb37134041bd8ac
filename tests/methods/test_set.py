from __future__ import annotations

import pytest

from dynsparse.methods import Clock
from dynsparse.methods.set import SetSettings
from tests.methods.hand import by_hand, values

A = [0.5, -0.1, 0.4, 0.3, -0.2, 0, 0, 0, 0, 0, 0, 0]
B = [0.9, 0.8, -0.1, 0.7, 0.6, 0, 0, 0]


@pytest.mark.parametrize(
    ("scaling", "grown"),
    [(False, [2, 2]), (True, [2, 2])],
    ids=["each gets back what it lost", "by what is kept, here the same"],
)
def test_worked_by_hand(scaling: bool, grown: list[int]) -> None:
    """Fraction 0.4 of five: each layer drops its two smallest magnitudes.

    A: 0.5 -0.1 0.4 0.3 -0.2 of 12: -0.1 (position 1) and -0.2 (position 4) go, 0, 2, 3 stay.
    B: 0.9 0.8 -0.1 0.7 0.6 of 8: -0.1 (position 2) and 0.6 (position 4) go, 0, 1, 3 stay.
    Both keep three, so that either rule of sharing gives each two back.
    """
    reallocator = by_hand(SetSettings(name="set", fraction=0.4, scaling=scaling), [A, B])
    report = reallocator(Clock(1, 0))
    assert list(report.dropped.values()) == [2, 2]
    assert list(report.grown.values()) == grown
    first, second = reallocator.masks
    assert first.active[:3].tolist() == [0, 2, 3]
    assert min(first.active[3:].tolist()) >= 5, "what was dropped does not grow again at once"
    assert second.active[:3].tolist() == [0, 1, 3]
    assert min(second.active[3:].tolist()) >= 5


def test_scaling_moves_weights_to_the_layer_that_keeps_more() -> None:
    """Fraction 0.5: A of 8 active drops 4 and keeps 4; B of 2 drops 1 and keeps 1.

    Five are freed. Without scaling A gets 4 and B 1. With it the shares are 4 : 1, again 4 and 1; so let B
    hold its last weight: of 1 active it drops round(0.5) = 0 and keeps 1. Then 4 are freed, and the shares
    4 : 1 give 3.2 and 0.8: floors 3 and 0, the one left over goes to the larger remainder, B.
    """
    a = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0, 0, 0, 0]
    b = [0.9, 0, 0, 0, 0, 0, 0, 0]
    without = by_hand(SetSettings(name="set", fraction=0.5), [a, b])(Clock(1, 0))
    assert list(without.grown.values()) == [4, 0]
    with_scaling = by_hand(SetSettings(name="set", fraction=0.5, scaling=True), [a, b])(Clock(1, 0))
    assert list(with_scaling.dropped.values()) == [4, 0]
    assert list(with_scaling.grown.values()) == [3, 1]


def test_a_fraction_of_less_than_a_unit_drops_none_and_of_1_keeps_the_largest() -> None:
    none = by_hand(SetSettings(name="set", fraction=0.01), [A])(Clock(1, 0))
    assert sum(none.dropped.values()) == 0
    reallocator = by_hand(SetSettings(name="set", fraction=1.0), [A])
    reallocator(Clock(1, 0))
    assert reallocator.masks.layers[0].weight[0, 0] == 0.5
    assert reallocator.masks.layers[0].active_units == 5


def test_new_weights_differ_from_layer_to_layer_and_from_event_to_event() -> None:
    settings = SetSettings(name="set", fraction=0.5, new_weights="initial")
    reallocator = by_hand(settings, [[1.0] * 40 + [0.0] * 80, [1.0] * 40 + [0.0] * 80], seed=3)
    drawn = []
    for step in (1, 2):
        before = [set(values(layer)) for layer in reallocator.masks]
        reallocator(Clock(step, 0))
        drawn += [set(values(layer)) - old for layer, old in zip(reallocator.masks, before, strict=True)]
    assert all(len(new) >= 20 for new in drawn)
    for i, one in enumerate(drawn):
        assert not any(one & other for other in drawn[i + 1 :])


def test_counts_are_rounded_to_the_nearest() -> None:
    """0.26 of 10 is 2.6: three; 0.24 of 10: two."""
    row = [float(i + 1) for i in range(10)] + [0.0] * 10
    for fraction, expected in ((0.26, 3), (0.24, 2)):
        report = by_hand(SetSettings(name="set", fraction=fraction), [row])(Clock(1, 0))
        assert sum(report.dropped.values()) == expected


def test_fractions_are_decimal() -> None:
    """0.29 of 100 is 29, though in binary it is a little less; 0.07 of 100 is 7, though it is a little more."""
    for fraction, expected in ((0.29, 29), (0.07, 7)):
        row = [float(i + 1) for i in range(100)] + [0.0] * 100
        report = by_hand(SetSettings(name="set", fraction=fraction), [row])(Clock(1, 0))
        assert sum(report.dropped.values()) == expected
