"""Costs of growth, made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

from dynsparse.masks.parted import Scores


class Costs(Mapping[str, Scores]):
    """Costs of growth by layer, float [units], each made when it is asked for."""

    def __init__(self, make: Mapping[str, Callable[[], Scores]] | None = None) -> None:
        self._make = dict(make or {})

    def __getitem__(self, name: str) -> Scores:
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

    def then(self, change: Callable[[str, Scores], Scores]) -> Costs:
        """Return costs that `change`, given the layer's name, makes of these."""
        return Costs({name: _changed(make, change, name) for name, make in self._make.items()})


def _same(costs: Scores) -> Callable[[], Scores]:
    return lambda: costs


def _changed(make: Callable[[], Scores], change: Callable[[str, Scores], Scores], name: str) -> Callable[[], Scores]:
    return lambda: change(name, make())
