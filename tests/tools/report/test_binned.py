"""Sequences of bounded length."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynsparse.tools.report.binned import Binned, latest


@given(st.lists(st.integers()), st.sampled_from([2, 4, 8]))
def test_bins_hold_consecutive_items_each_once(items: list[int], most: int) -> None:
    binned: Binned[tuple[int, ...]] = Binned(lambda earlier, later: (*earlier, *later), most)
    for item in items:
        binned.add((item,))
    assert [item for one in binned for item in one] == items
    assert len(binned) <= most
    assert all(len(one) == binned.size for one in list(binned)[:-1])
    assert binned.added == len(items)
    assert binned.size == 1 or len(items) > most, "items were put together though there was room"


def test_by_hand() -> None:
    """Nine items in four bins: pairs after the fourth, fours after the eighth."""
    binned: Binned[int] = Binned(latest, 4)
    seen = []
    for item in range(1, 10):
        binned.add(item)
        seen.append(list(binned))
    assert seen[3:] == [[1, 2, 3, 4], [2, 4, 5], [2, 4, 6], [2, 4, 6, 7], [2, 4, 6, 8], [4, 8, 9]]
