"""Ways take turns, and one wins only if it is clearly faster."""

from __future__ import annotations

import pytest

from dynsparse.inference.rounds import LEAST_ROUNDS, Ratio, in_turn, ratio
from tests.inference.small import Clock


def test_ratios_by_hand() -> None:
    """Within rounds: 1/2, 2/2, 6/4, 2/8, sorted 0.25, 0.5, 1, 1.5."""
    found = ratio([1, 2, 6, 2], [2, 2, 4, 8])
    assert (found.low, found.median, found.high) == (0.4375, 0.75, 1.125)
    assert ratio([3], [2]) == Ratio(1.5, 1.5, 1.5)


def test_of_a_way_that_was_given_up_the_first_rounds_count() -> None:
    assert ratio([4, 4], [2, 2, 1]) == Ratio(2, 2, 2)


@pytest.mark.parametrize(
    ("found", "wins"),
    [
        (Ratio(0.9, 0.8, 0.99), True),
        (Ratio(0.91, 0.8, 0.99), False),  # less than a tenth
        (Ratio(0.5, 0.4, 1.0), False),  # slower in one round of four
    ],
)
def test_a_way_wins_by_a_margin_in_most_rounds(found: Ratio, wins: bool) -> None:
    assert found.wins(0.1) is wins


def test_losers_are_given_up(clock: Clock) -> None:
    calls: list[str] = []

    def way(name: str, seconds: float) -> None:
        calls.append(name)
        clock.seconds += seconds

    ways = {"base": lambda: way("base", 0.5), "slow": lambda: way("slow", 2.0), "fast": lambda: way("fast", 0.125)}
    times = in_turn(ways, 5)
    assert times == {"base": [0.5] * 5, "slow": [2.0] * LEAST_ROUNDS, "fast": [0.125] * 5}
    assert calls[6:12] == ["base", "slow", "fast", "slow", "fast", "base"], "after two calls each to warm up"
    assert ratio(times["fast"], times["base"]) == Ratio(0.25, 0.25, 0.25)


def test_it_ends_when_all_others_have_lost(clock: Clock) -> None:
    def way(seconds: float) -> None:
        clock.seconds += seconds

    times = in_turn({"base": lambda: way(0.5), "slow": lambda: way(4.0)}, 50)
    assert len(times["base"]) == len(times["slow"]) == LEAST_ROUNDS


def test_short_calls_are_repeated_and_the_fastest_counts(clock: Clock) -> None:
    """A call of half a millisecond makes a turn of four; here every second one is interrupted."""
    calls: list[float] = []

    def way() -> None:
        calls.append(0.5e-3 if len(calls) % 2 else 8e-3)
        clock.seconds += calls[-1]

    times = in_turn({"base": way}, 1)
    assert len(calls) == 2 + 4
    assert times["base"] == [pytest.approx(0.5e-3)]
