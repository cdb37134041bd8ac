"""The schedules of the learning rate, with their settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dynsparse.schedules.curves import cosine, polynomial
from dynsparse.schedules.tables import NotNegative, StepTable
from pipelines.common.settings import Count, Settings

Rate = Annotated[float, Field(gt=0, le=2**53)]
Floor = Annotated[float, Field(ge=0, le=2**53)]


class Warmed(Settings):
    """A schedule that may begin with a warm-up."""

    warmup_epochs: Annotated[float, Field(ge=0)] = 0
    """Epochs over which the rate rises linearly from 0 to its value."""
    warmup_steps: Count = 0
    """Length of the warm-up in steps, instead of in epochs."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Warmed:
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g} and warmup_steps is {self.warmup_steps}; both set the length "
                f"of the warm-up: give one of them"
            )
        return self

    def warmup(self, steps_per_epoch: int) -> float:
        """Return the length of the warm-up in steps, which need not be whole."""
        return self.warmup_steps or self.warmup_epochs * steps_per_epoch


class StepLr(Warmed):
    """Piecewise constant learning rate: the paper's tables."""

    name: Literal["steps"] = "steps"
    table: NotNegative = StepTable(((0, 0.1),))
    """Learning rate from each epoch on."""

    def at(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """Return the learning rate of a step, counted from 0 over the whole run."""
        return self.table.at(step // steps_per_epoch) * _warmup(step, self.warmup(steps_per_epoch))


class Peaked(Warmed):
    """A schedule that rises to `peak` and then goes its way until the run ends."""

    peak: Rate = 0.1
    """Learning rate after the warm-up, the highest of the run."""

    def at(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """Return the learning rate of a step, counted from 0 over the whole run."""
        warmup = self.warmup(steps_per_epoch)
        if step < warmup:
            return self.peak * _warmup(step, warmup)
        return self.after((step - warmup) / max(1.0, total_steps - warmup))

    def after(self, progress: float) -> float:
        """Return the learning rate after the warm-up, at a fraction of the rest of the run."""
        raise NotImplementedError


class Falling(Peaked):
    """A schedule that goes from `peak` down to `final`."""

    final: Floor = 0.0
    """Learning rate at the end of the run."""

    @model_validator(mode="after")
    def _falls(self) -> Falling:
        if self.final > self.peak:
            raise ValueError(f"final is {self.final:g} and peak is {self.peak:g}; the rate falls: give a lower final")
        return self


class ConstantLr(Peaked):
    """A constant learning rate after the warm-up."""

    name: Literal["constant"]

    def after(self, progress: float) -> float:
        """Return `peak`."""
        return self.peak


class CosineLr(Falling):
    """Cosine annealing from `peak` to `final` (Loshchilov & Hutter 2017, eq. 5, one cycle), after the warm-up."""

    name: Literal["cosine"]

    def after(self, progress: float) -> float:
        """Return the rate along half a cosine."""
        return cosine(self.peak, self.final, progress)


class LinearLr(Falling):
    """A straight line from `peak` to `final`, after the warm-up."""

    name: Literal["linear"]

    def after(self, progress: float) -> float:
        """Return the rate along the line."""
        return polynomial(self.peak, self.final, progress, 1)


class PolynomialLr(Falling):
    """A polynomial from `peak` to `final`, after the warm-up (You et al. 2017, with the power 2).

    The distance to `final` falls as a power of the fraction of the run that is left.
    """

    name: Literal["polynomial"]
    power: Annotated[float, Field(gt=0, le=100)] = 2.0
    """The power; 1 is a straight line."""

    def after(self, progress: float) -> float:
        """Return the rate along the curve."""
        return polynomial(self.peak, self.final, progress, self.power)


LrSettings = Annotated[StepLr | CosineLr | LinearLr | PolynomialLr | ConstantLr, Field(discriminator="name")]


def _warmup(step: int, warmup_steps: float) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
