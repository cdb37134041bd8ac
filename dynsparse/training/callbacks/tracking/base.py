"""The contract of a tracker: a service that shows runs, such as W&B."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from dynsparse.training.callbacks.base import RunReport, Summary

Histogram = tuple[Sequence[int], Sequence[float]]
"""Counts, and the edges between them: one more."""


@dataclass(frozen=True)
class Reading:
    """Values of one step, by tag."""

    step: int
    values: Mapping[str, float]
    seconds: float
    """Time of the reading, since the epoch of Unix."""


class Tracker(ABC):
    """Tells a service of one run. Each method may be slow, and may raise anything: see `Delivery`.

    All are called in one thread, in order; `begin` first. One that has failed may be called again.
    """

    name: ClassVar[str]
    """The service's name, as people know it."""
    file: ClassVar[str]
    """Name of the file in the run's folder that keeps the run's id at the service."""

    def __init__(self, folder: Path, project: str | None) -> None:
        """`project`: what the service calls a project or an experiment; None for its own setting."""
        self.folder = folder
        self.project = project

    def new_id(self) -> str | None:
        """Return the id of a new run; None where the service gives it. Called before all else, in any thread."""
        return None

    @abstractmethod
    def begin(self, run: RunReport, id: str | None) -> str:  # noqa: A002 - the services' word for it
        """Begin a run at the service, or continue the one with this id. Returns its id."""

    @abstractmethod
    def log(self, readings: Sequence[Reading]) -> None:
        """Log readings, in order: one, or all that have waited for the service."""

    @abstractmethod
    def show(self, tag: str, picture: Tensor) -> None:
        """Show a picture, uint8 [3, height, width]."""

    @abstractmethod
    def spread(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Show histograms by tag, where the service can."""

    @abstractmethod
    def end(self, summary: Summary) -> None:
        """End the run at the service, and wait until it has all."""

    @abstractmethod
    def where(self) -> str:
        """Return where the run is to be seen, in words. After `begin`."""

    @abstractmethod
    def left(self) -> str:
        """Return in words what becomes of readings that the service has not taken when training has ended."""

    @abstractmethod
    def may_pass(self, error: Exception) -> bool:
        """Tell whether it may help to try again: the service is away, rather than unwilling."""
