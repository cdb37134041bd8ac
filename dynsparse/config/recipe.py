"""Sections of `train` that stand on their own: networks beside the trained one, its average and its teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipelines.common.paths import PathText
from pipelines.common.settings import AtLeast1, Count, Settings

BestBy = Literal["model", "ema"]


class EmaSettings(Settings):
    """Exponential moving average of the weights, kept in the masks and evaluated beside the model; null: none."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Fraction of the average that an update keeps; the weights of now give the rest."""
    every_steps: AtLeast1 = 1
    """Steps between two updates."""
    ramp: bool = False
    """Begin with a lower decay: (1 + n) / (10 + n) after n updates, as long as that is below `decay`."""
    start_epoch: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Epochs in which the average is a copy of the weights; then it begins to average."""
    best_by: BestBy = "model"
    """Network whose accuracy chooses the best epoch: the model, or its average. It is also the run's network where
    another run takes it (`model.weights`, `train.teacher`), and in predictions and confusion matrices."""


class ShrinkSettings(Settings):
    """Shrinks: channels of no use go while the network trains, which becomes physically smaller; null: none."""

    at: Annotated[list[Count], Field(min_length=1, max_length=1000)]
    """Epochs, counted from 0, before which channels go that nobody reads, or that carry nothing."""

    @field_validator("at")
    @classmethod
    def _rises(cls, at: list[int]) -> list[int]:
        if at != sorted(set(at)):
            raise ValueError(f"is {at}; name each epoch once, in rising order")
        return at


class TeacherSettings(Settings):
    """A trained network whose outputs are soft targets (distillation, Hinton et al. 2015); null: none."""

    source: Annotated[PathText, Field(min_length=1)]
    """A run's folder (its best, or its latest), a checkpoint, or exported weights of the network that is trained."""
    temperature: Annotated[float, Field(gt=0, le=1000)] = 2.0
    """Divisor of both networks' logits before the softmax: the higher, the softer the targets."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Fraction of the loss that the teacher's targets get; the labels get the rest."""
