"""Tensors that are made when they are asked for, so that a network's need not be there at once."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

from torch import Tensor

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


class Costs(Mapping[str, Tensor]):
    """Costs of growth by layer, float [units], each made when it is asked for."""

    def __init__(self, make: Mapping[str, Callable[[], Tensor]] | None = None) -> None:
        self._make = dict(make or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._make[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)

    def __contains__(self, name: object) -> bool:
        return name in self._make

    def get(self, name: str, default: Any = None) -> Any:
        """Return a layer's costs, or the default. Else a KeyError of what makes them would pass for an absent layer."""
        return self[name] if name in self._make else default

    def held(self) -> Costs:
        """Return these costs, made once, now."""
        return Costs({name: _same(make()) for name, make in self._make.items()})

    def adding(self, other: Costs) -> Costs:
        """Return these and other layers' costs."""
        return Costs({**self._make, **other._make})

    def of(self, names: Container[str]) -> Costs:
        """Return the costs of these layers alone."""
        return Costs({name: make for name, make in self._make.items() if name in names})

    def then(self, change: Callable[[str, Tensor], Tensor]) -> Costs:
        """Return costs that `change`, given the layer's name, makes of these."""
        return Costs({name: _changed(make, change, name) for name, make in self._make.items()})


def _same(costs: Tensor) -> Callable[[], Tensor]:
    return lambda: costs


def _changed(make: Callable[[], Tensor], change: Callable[[str, Tensor], Tensor], name: str) -> Callable[[], Tensor]:
    return lambda: change(name, make())
