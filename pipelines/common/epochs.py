"""Lengths of epochs in optimizer steps. They differ where the global batch changes in the course of a run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class EpochTable:
    """Steps of each epoch: the last entry at or before an epoch holds, the first is for epoch 0.

    Example: ((0, 10), (3, 20)) are 10 steps in epochs 0, 1 and 2, and 20 in each later one. Epoch 4 begins after
    3 * 10 + 1 * 20 = 50 steps.
    """

    points: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if wrong := [pair for pair in self.points if not all(type(number) is int for number in pair)]:
            raise ValueError(
                f"the steps of an epoch have the entry {wrong[0][0]!r}: {wrong[0][1]!r}; write whole numbers"
            )
        epochs = [epoch for epoch, _ in self.points]
        if not epochs or epochs[0] != 0:
            raise ValueError("the steps of an epoch need an entry for epoch 0, such as {0: 100, 30: 200}")
        if any(a >= b for a, b in itertools.pairwise(epochs)):
            raise ValueError(f"the steps of an epoch are given for the epochs {epochs}; they must rise")
        if short := [epoch for epoch, steps in self.points if steps < 1]:
            raise ValueError(f"epoch {short[0]} has no steps; an epoch has at least 1")

    @classmethod
    def of(cls, steps: int | Mapping[int, int]) -> EpochTable:
        """Return the table of one length, or of lengths by the first epoch that has them. ValueError if it is none."""
        return cls(tuple(steps.items()) if isinstance(steps, Mapping) else ((0, steps),))

    def as_given(self) -> int | dict[int, int]:
        """Return what `of` takes: one number where all epochs are as long."""
        return dict(self.points) if self.varies else self.points[0][1]

    @property
    def varies(self) -> bool:
        """Return True if epochs differ in length."""
        return len({steps for _, steps in self.points}) > 1

    @property
    def alike(self) -> int:
        """Return the number of steps before the first epoch of another length; only where epochs differ."""
        return self.before(next(first for first, steps in self.points if steps != self.points[0][1]))

    def steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        return next(steps for first, steps in reversed(self.points) if first <= epoch)

    def before(self, epoch: int) -> int:
        """Return the number of steps of all epochs before this one."""
        ends = [first for first, _ in self.points[1:]] + [epoch]
        return sum(
            max(0, min(end, epoch) - first) * steps for (first, steps), end in zip(self.points, ends, strict=True)
        )

    def epoch_of(self, step: int) -> int:
        """Return the epoch of a step, counted from 0 over the whole run."""
        first, steps = next(point for point in reversed(self.points) if self.before(point[0]) <= max(0, step))
        return first + (max(0, step) - self.before(first)) // steps

    def in_first(self, step: int) -> float:
        """Return a step, counted from 0, as if all epochs were as long as the first.

        What is a curve over epochs stays one. Example: with ((0, 10), (3, 20)) step 60 is in the middle of epoch 4.
        That is step 45 of a run whose epochs all have 10 steps. Whole, and the step itself, while nothing has changed.
        """
        epoch, length = self.epoch_of(step), self.points[0][1]
        done = step - self.before(epoch)
        steps = self.steps(epoch)
        return epoch * length + (done if steps == length else done * length / steps)
