"""Forecast of the share of weights that are ever active in a run: R_s of in-time over-parameterization.

Liu, Yin, Mocanu & Pechenizkiy, "Do we actually need dense over-parameterization? In-time over-parameterization in
sparse training", ICML 2021. The paper measures R_s. The forecast, and a period chosen by it, are this project's own.

Let a layer of n units have k active ones. An event that grows g of them takes g of the n - k free places: none that it
has dropped. Units that were never active are among the free ones. Where growth is at random each of them grows with the
probability g / (n - k), so their expected number falls by the factor 1 - g / (n - k). That is exact on average. Where
growth goes by scores, or layers trade, it is an estimate. Scores return to the same places: on a small MLP RigL
explored half of the forecast, CHTs five sixths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec
from dynsparse.methods.clock import Clock, Schedule

Basis = Literal["random", "unsure", "scores"]
"""Ground of a forecast. random: growth is at random, the forecast exact on average. unsure: at random too, but how much
each layer moves shows only in the run. scores: growth is not at random, the forecast about the most that there will be.
"""

_BASES: dict[Basis, str] = {
    "random": "",
    "unsure": " (how much each layer moves is not known before)",
    "scores": " (as if growth were random; scores return to the same places)",
}
Counts = npt.NDArray[np.float64]
"""Units of each layer, float64 [layers]."""


@dataclass(frozen=True)
class Forecast:
    """The exploration that is expected of a run."""

    share: float
    """Fraction of the weights of all sparse layers that are ever active."""
    events: int
    basis: Basis
    period: int | None = None
    """Steps between events, where it was chosen to reach a share."""

    def __str__(self) -> str:
        chosen = "" if self.period is None else f", one every {self.period:,} steps"
        most = "up to " if self.basis == "scores" else ""
        share = f"{100 * self.share:.0f} % of the sparse weights"
        return f"explores {most}about {share} in {self.events:,} events{chosen}{_BASES[self.basis]}"


class Mover(Protocol):
    """The part of a method that a forecast asks."""

    def is_due(self, clock: Clock) -> bool:
        """Whether there is an event after this step."""

    def units_at(self, layers: Sequence[LayerSpec], before: Sequence[int], clock: Clock) -> Sequence[int]:
        """Active units of each layer after an event, given those before."""

    def grown_units(self, now: Counts, after: Counts, clock: Clock) -> Counts | None:
        """Units that each layer grows in an event. None: nobody can tell beforehand."""


def explored(units: Counts, active: Counts, moves: Iterable[tuple[Counts, Counts]]) -> Counts:
    """Return the expected number of units of each layer that are ever active.

    `moves`: the active units before each event, and the units that grow in it.

    Example: 10 units, 4 active, two events that each grow 2 of the 6 free places. Of the 6 that were never active 4
    are left after the first, 4 * 4/6 = 2.67 after the second. So 7.33 are explored.
    """
    never = units - active
    for now, grown in moves:
        free = units - now
        never = never * (1 - np.minimum(grown, free) / np.maximum(free, 1))
    return units - never


def forecast(
    method: Mover, layers: Sequence[LayerSpec], active: Sequence[int], events: Iterable[Clock]
) -> tuple[float, int] | None:
    """Return the share of weights that is explored, and the number of events. None: nobody can tell beforehand."""
    units, sizes = _counts([layer.units for layer in layers]), _counts([layer.unit_size for layer in layers])
    moves: list[tuple[Counts, Counts]] = []
    now = list(active)
    for clock in events:
        after = method.units_at(layers, now, clock)
        grown = method.grown_units(_counts(now), _counts(after), clock)
        if grown is None:
            return None
        moves.append((_counts(now), grown))
        now = list(after)
    found = explored(units, _counts(active), moves)
    return float((found * sizes).sum() / (units * sizes).sum()), len(moves)


def events_of(method: Mover, schedule: Schedule, start: int, stride: int) -> Iterator[Clock]:
    """Yield the clock of each event after the step `start`, of which all are multiples of `stride`."""
    for step in range(start - start % stride + stride, schedule.total_steps + 1, stride):
        if method.is_due(clock := schedule.clock(step)):
            yield clock


def longest_period(reached: Callable[[int], float], target: float, longest: int) -> int:
    """Return a period that reaches the target, about the longest: it is halved until it does, then bisected.

    `reached`: the share explored with a period. Raises UserError if even an event after every step explores less.
    """
    fails, period = longest + 1, longest
    while (share := reached(period)) < target:
        if period == 1:
            raise UserError(
                f"method.exploration is {target:g}, and at most {share:.3f} of the weights can be explored, with an "
                f"event after every step: ask for less, train longer, or move more in each event"
            )
        fails, period = period, period // 2
    while fails - period > 1:
        middle = (fails + period) // 2
        fails, period = (fails, middle) if reached(middle) >= target else (middle, period)
    return period


def _counts(values: Sequence[int]) -> Counts:
    return np.asarray(values, dtype=np.float64)
