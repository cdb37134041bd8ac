"""Schedules of the density: how the number of active weights changes over training, whatever rule moves them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.common.settings import AtLeast1, Count, Settings

Sparsity = Annotated[float, Field(ge=0, lt=1)]
Progress = Annotated[float, Field(ge=0, le=1)]


def _rising(places: list[float]) -> list[float]:
    """Return places of a run, if each comes after the one before. Else raise ValueError."""
    if any(later <= earlier for earlier, later in pairwise(places)):
        raise ValueError(f"{places} does not rise; give fractions of the run, each larger than the one before")
    return places


Places = Annotated[
    list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1, max_length=1000), AfterValidator(_rising)
]
"""Fractions of a run, rising, at which something changes."""


def steps_made(places: Sequence[float], progress: float) -> float:
    """Return the fraction of the places of a run that `progress` has reached: from 0 to 1."""
    return sum(progress >= place for place in places) / len(places)


class DensitySchedule(Settings):
    """The way from a sparsity at the start to the one that the config asks for.

    `share` tells how far it is: 0 at the start, 1 at the end. A layer with a units at the start and b at the end has
    a + (b - a) share.
    """

    start: Sparsity = 0.0
    """Fraction of zeros in each layer at the first step, shared out as the final one is; 0: a dense network."""

    @property
    def by_epochs(self) -> bool:
        """Whether it looks at epochs, not at the fraction of the run that is done."""
        return False

    def share(self, progress: float, epochs: int) -> float:
        """Return how much of the way is done, 0 to 1, when `progress` of the run and so many whole epochs are."""
        raise NotImplementedError

    def is_final(self, progress: float, epochs: int) -> bool:
        """Return whether the density stays at its final value from here on."""
        raise NotImplementedError


class Gradual(DensitySchedule):
    """A schedule that goes one way, from `begin` to `end`; weights move with each reallocation in between."""

    begin: Progress = 0.0
    """Fraction of the run after which the density begins to change."""
    end: Progress = 0.75
    """Fraction of the run after which it has its final value."""

    @model_validator(mode="after")
    def _rises(self) -> Gradual:
        if self.begin >= self.end:
            raise ValueError(f"begin is {self.begin:g} and end is {self.end:g}; the density changes in between")
        return self

    def share(self, progress: float, epochs: int) -> float:
        """Return the curve's value; 0 before `begin`, 1 from `end` on."""
        place = (progress - self.begin) / (self.end - self.begin)
        return 0.0 if place <= 0 else 1.0 if place >= 1 else self.curve(place)

    def is_final(self, progress: float, epochs: int) -> bool:
        """Return whether `end` is past."""
        return progress >= self.end

    def curve(self, place: float) -> float:
        """Return the value at a place between begin (0) and end (1)."""
        raise NotImplementedError


class CubicDensity(Gradual):
    """The cubic of gradual magnitude pruning (Zhu & Gupta 2018, eq. 1): 1 - (1 - t)^3, fast first and slow at the end.

    With a `start` sparser than the end the density rises by the same curve.
    """

    name: Literal["cubic"]

    def curve(self, place: float) -> float:
        """Return 1 - (1 - place)^3."""
        return float(1 - (1 - place) ** 3)


class SigmoidDensity(Gradual):
    """A sigmoid, slow at both ends (Zhang et al. 2025), scaled so that it meets 0 and 1."""

    name: Literal["sigmoid"]
    steepness: Annotated[float, Field(gt=0, le=100)] = 6.0
    """Slope k in 1 / (1 + exp(-k (2 t - 1)))."""

    def curve(self, place: float) -> float:
        """Return the sigmoid at a place, less its value at 0, over its height."""
        low, high = (self._raw(at) for at in (0.0, 1.0))
        return (self._raw(place) - low) / (high - low)

    def _raw(self, place: float) -> float:
        return 1 / (1 + math.exp(-self.steepness * (2 * place - 1)))


class StepDensity(DensitySchedule):
    """Equal steps at fractions of a run, such as MEST's soft memory bound (Yuan et al. 2021).

    Example: a start of 0.85, two steps and a final sparsity of 0.9: it is 0.85, then 0.875, then 0.9. Each step is made
    by the first reallocation that comes then.
    """

    name: Literal["steps"]
    at: Places = [0.5625, 0.75]
    """Fractions of the run at which the density makes a step. Default: epochs 90 and 120 of 160."""

    def share(self, progress: float, epochs: int) -> float:
        """Return the fraction of the steps that are made."""
        return steps_made(self.at, progress)

    def is_final(self, progress: float, epochs: int) -> bool:
        """Return whether the last step is made."""
        return progress >= self.at[-1]


class AlternatingDensity(DensitySchedule):
    """Dense and sparse phases in turn (AC/DC, Peste et al. 2021); sparse at the end.

    The epoch before `last_sparse_epoch` is dense: a sparse phase that would not end earlier does not begin. So the last
    dense phase may be longer, as in the authors' configs for ImageNet: epochs 75 to 84.

    Example: warmup_epochs 1, dense_epochs 1, sparse_epochs 2, last_sparse_epoch 8. Epoch 0 is dense, 1 and 2 sparse, 3
    dense, 4 and 5 sparse, 6 and 7 dense, and from 8 on all are sparse.
    """

    name: Literal["alternating"]
    warmup_epochs: AtLeast1 = 10
    """Dense epochs before the first sparse one."""
    sparse_epochs: AtLeast1 = 5
    """Epochs of each sparse phase."""
    dense_epochs: AtLeast1 = 5
    """Epochs of each dense phase after the first."""
    last_sparse_epoch: Count = 85
    """Epoch, counted from 0, from which on the network stays sparse."""

    @model_validator(mode="after")
    def _warms_up_before_the_end(self) -> AlternatingDensity:
        if self.warmup_epochs > self.last_sparse_epoch:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs} and last_sparse_epoch is {self.last_sparse_epoch}: the network "
                f"would be sparse before its dense warm-up ends: lower warmup_epochs, or raise last_sparse_epoch"
            )
        return self

    @property
    def by_epochs(self) -> bool:
        """Return True."""
        return True

    def share(self, progress: float, epochs: int) -> float:
        """Return 1 in a sparse phase, 0 in a dense one: that of the epoch which is next."""
        if epochs >= self.last_sparse_epoch or epochs < self.warmup_epochs:
            return float(epochs >= self.last_sparse_epoch)
        place = (epochs - self.warmup_epochs) % (self.sparse_epochs + self.dense_epochs)
        ends = epochs - place + self.sparse_epochs
        return float(epochs < ends < self.last_sparse_epoch)

    def is_final(self, progress: float, epochs: int) -> bool:
        """Return whether the last sparse phase has begun, if only with its first epoch."""
        return epochs >= self.last_sparse_epoch


AnyDensity = Annotated[CubicDensity | SigmoidDensity | StepDensity | AlternatingDensity, Field(discriminator="name")]
