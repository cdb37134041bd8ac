"""Time spent in certain calls. No import of torch: its own is timed with it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

Taken = tuple[float, ...]
"""A time on each clock."""


def wall() -> Taken:
    """Return seconds on the wall clock alone."""
    return (time.perf_counter(),)


class Watch:
    """Times calls by name, on one or more clocks.

    A call within another counts in `whole` for both, in `own` for itself alone. `every` is the outermost calls
    together. Example: `step` takes 5 s, 2 s of it in `mask`. Then whole is {step: 5, mask: 2}, own is {step: 3,
    mask: 2}, every is 5.
    """

    def __init__(self, clock: Callable[[], Taken] = wall) -> None:
        self.clock = clock
        self.clear()

    def clear(self) -> None:
        """Forget all calls so far."""
        self.whole: dict[str, Taken] = {}
        self.own: dict[str, Taken] = {}
        self.every: Taken = ()
        self._inner: list[Taken] = []

    @property
    def seconds(self) -> float:
        """Time of the outermost calls so far, on the first clock."""
        return self.every[0] if self.every else 0.0

    def take(self) -> dict[str, Taken]:
        """Return `whole` and `every` of the calls since the last time."""
        taken = {**self.whole, "every": self.every} if self.whole else {}
        self.clear()
        return taken

    def on(self, owner: Any, attribute: str, name: str | None = None) -> None:
        """Time every call of an object's method, or of a module's function, from now on."""
        setattr(owner, attribute, self.timed(getattr(owner, attribute), name or attribute))

    def timed(self, act: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return a function that does the same and counts under `name`, also where it raises."""

        @functools.wraps(act)
        def call(*arguments: Any, **options: Any) -> Any:
            self._inner.append(())
            began = self.clock()
            try:
                return act(*arguments, **options)
            finally:
                self._add(name, minus(self.clock(), began))

        return call

    def _add(self, name: str, taken: Taken) -> None:
        inner = self._inner.pop()
        self.whole[name] = plus(self.whole.get(name, ()), taken)
        self.own[name] = plus(self.own.get(name, ()), minus(taken, inner))
        if self._inner:
            self._inner[-1] = plus(self._inner[-1], taken)
        else:
            self.every = plus(self.every, taken)


def plus(one: Taken, other: Taken) -> Taken:
    """Add by clock; () counts as zeros."""
    return tuple(a + b for a, b in zip(one, other, strict=True)) if one and other else one or other


def minus(one: Taken, other: Taken) -> Taken:
    """Subtract by clock; () counts as zeros."""
    return tuple(a - b for a, b in zip(one, other, strict=True)) if other else one
