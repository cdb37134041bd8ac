"""The observer of a run that a service shows."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from dynsparse import files
from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks.base import (
    EpochReport,
    RunReport,
    SamplesReport,
    ShrinkReport,
    StepReport,
    Summary,
    Writer,
)
from dynsparse.training.callbacks.scalars import Scalars, Values
from dynsparse.training.callbacks.tracking.base import Histogram, Reading, Tracker
from dynsparse.training.callbacks.tracking.delivery import Delivery

log = logging.getLogger(__name__)

LIMIT_SECONDS = 30.0
"""Longest wait for a service at the end of a run."""
_BINS = 64
_DRAWABLE = 1e20
"""Beyond, the width of a bin may overflow."""


class Tracking(Writer):
    """Hands a run's reports to a tracker, in a thread beside training. The run's id is kept in its folder.

    A resumed run continues the one that the service knows by that id.
    """

    def __init__(self, tracker: Tracker, *, limit: float = LIMIT_SECONDS) -> None:
        """`limit`: for how many seconds the end of the run may wait for the service."""
        self.path = tracker.folder / tracker.file
        self.tracker = tracker
        self._limit = limit
        self._delivery = Delivery(tracker.name, tracker.log, tracker.may_pass)
        self._id: str | None = None
        self._written: str | None = None

    @property
    def pending(self) -> bool:
        return self._id != self._written

    def write(self) -> None:
        found = self._id
        files.make_way(self.path)
        files.write_whole(self.path, f"{json.dumps({'id': found})}\n".encode())
        self._written = found

    def on_start(self, run: RunReport) -> None:
        self._scalars = Scalars(run)
        self._written = self._known_id()  # The thread beside must not wait for storage.
        self._id = self._written or self.tracker.new_id()
        self._delivery.add(lambda: self._begin(run))
        for step, values in self._scalars.of_start(run):
            self._log(step, values)

    def on_samples(self, report: SamplesReport) -> None:
        self._delivery.add(lambda: self.tracker.show("data/first_batch", report.picture))

    def on_step(self, report: StepReport) -> None:
        self._log(report.step, self._scalars.of_step(report))

    def on_reallocation(self, report: ReallocationReport) -> None:
        self._log(report.step, self._scalars.of_reallocation(report))

    def on_shrink(self, report: ShrinkReport) -> None:
        self._log(report.step, self._scalars.of_shrink(report))

    def on_epoch(self, report: EpochReport) -> None:
        self._log(report.step, self._scalars.of_epoch(report))
        if histograms := histograms_of(report.active_weights):
            self._delivery.add(lambda: self.tracker.spread(report.step, histograms))

    def on_end(self, summary: Summary) -> None:
        self._delivery.add(lambda: self.tracker.end(summary))
        if lost := self._delivery.finish(self._limit):
            name, left = self.tracker.name, self.tracker.left()
            log.warning(
                "%s has not taken %d readings of this run; the logs in its folder are whole, %s", name, lost, left
            )

    def _log(self, step: int, values: Values) -> None:
        self._delivery.add(Reading(step, values, time.time()))

    def _begin(self, run: RunReport) -> None:
        self._id = self.tracker.begin(run, self._id)
        log.info("%s: %s", self.tracker.name, self.tracker.where())

    def _known_id(self) -> str | None:
        """Return the id that the folder keeps; None in a new run, or if the file is spoilt."""
        try:
            found = files.json_object(files.read_bytes(self.path)).get("id")
        except (OSError, ValueError):
            return None
        return found if isinstance(found, str) and found.isalnum() else None


def histograms_of(weights: Mapping[str, Tensor]) -> dict[str, Histogram]:
    """Return histograms of the weights of each layer, by tag, as far as they can be drawn."""
    drawable = {name: values[values.abs() < _DRAWABLE] for name, values in weights.items()}
    return {f"active_weights/{name}": _histogram(values) for name, values in drawable.items() if values.numel()}


def _histogram(values: Tensor) -> Histogram:
    low, high = (float(extreme) for extreme in torch.aminmax(values))
    counts = torch.histc(values, _BINS, low, high)
    edges = torch.linspace(low, high, _BINS + 1) if high > low else torch.linspace(low - 1, high + 1, _BINS + 1)
    return [int(count) for count in counts], edges.tolist()
