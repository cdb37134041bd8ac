"""A sequence that stays short however much is added: consecutive items are joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

MOST = 256
"""Bins of a sequence. The number is even, so that all bins have a partner."""


class Binned(Generic[Item]):
    """Bins of `size` consecutive items each (the last may hold fewer), at most `most` of them.

    `size` is a power of two: when all bins are taken, neighbours are joined. The number of items need not be known
    beforehand, and memory does not grow. Where no more than `most` are added, each has a bin of its own.

    With `most` = 2 and addition, items 1, 2, 3, 4, 5 give [1], [1, 2], [3, 3], [3, 7], [10, 5]: at the third item
    1 and 2 are joined and `size` is 2, at the fifth it is 4.
    """

    def __init__(self, join: Callable[[Item, Item], Item], most: int = MOST) -> None:
        """`join(earlier, later)` makes one of two neighbours, and must be associative."""
        self._join = join
        self._most = most
        self._bins: list[Item] = []
        self._in_last = 0
        self.size = 1
        self.added = 0

    def add(self, item: Item) -> None:
        """Append an item to the last bin, or in a bin of its own if that is full."""
        self.added += 1
        if self._bins and self._in_last < self.size:
            self._bins[-1] = self._join(self._bins[-1], item)
            self._in_last += 1
            return
        if len(self._bins) == self._most:
            self._halve()
        self._bins.append(item)
        self._in_last = 1

    def _halve(self) -> None:
        pairs = zip(self._bins[::2], self._bins[1::2], strict=True)
        self._bins = [self._join(earlier, later) for earlier, later in pairs]
        self.size *= 2

    def __iter__(self) -> Iterator[Item]:
        return iter(self._bins)

    def __len__(self) -> int:
        return len(self._bins)

    def __getitem__(self, index: int) -> Item:
        return self._bins[index]


def latest(earlier: Item, later: Item) -> Item:
    """A `join` for readings of a state, of which the latest stands for the bin."""
    return later
