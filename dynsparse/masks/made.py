"""Tensors that are made when they are asked for, so that a network's need not be there at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

T = TypeVar("T")
MOST = 1 << 26
"""Bytes of the scores of all layers that are kept on a GPU. If there are more, they are made anew."""


class MadeAnew(Sequence[T]):
    """Sequence whose entries are made each time that they are asked for. No entry is kept."""

    def __init__(self, make: Callable[[int], T], length: int) -> None:
        self._make, self._length = make, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        """Yield the entries. Else an IndexError of what makes them would pass for the end."""
        return (self._make(i) for i in range(self._length))

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._make(index % self._length)
