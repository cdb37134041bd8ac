"""Observers, one a file. `Observers` sends each report to all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from dynsparse.config import RunConfig
from dynsparse.errors import UserError
from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks.base import Callback, EpochReport, RunReport, SamplesReport, StepReport, Summary

log = logging.getLogger(__name__)

__all__ = [
    "Callback",
    "EpochReport",
    "Observers",
    "ReallocationReport",
    "RunReport",
    "SamplesReport",
    "StepReport",
    "Summary",
    "standard_observers",
]


class Observers(Callback):
    """Several observers as one. A full disk must not end the training that they watch."""

    def __init__(self, members: Sequence[Callback]) -> None:
        self.members = members
        self._failed: set[Callback] = set()
        #: What could not be written at the end, when no later report can make up for it.
        self.failure: str | None = None

    def on_start(self, run: RunReport) -> None:
        for member in self.members:
            try:
                member.on_start(run)
            except OSError as error:  # Nothing is lost yet: better to stop here than to train unseen.
                raise UserError(f"{type(member).__name__}: cannot write ({error}); free space, or set runs=") from None

    def on_samples(self, report: SamplesReport) -> None:
        self._tell(lambda member: member.on_samples(report))

    def on_step(self, report: StepReport) -> None:
        self._tell(lambda member: member.on_step(report))

    def on_reallocation(self, report: ReallocationReport) -> None:
        self._tell(lambda member: member.on_reallocation(report))

    def on_epoch(self, report: EpochReport) -> None:
        self._tell(lambda member: member.on_epoch(report))

    def on_end(self, summary: Summary) -> None:
        for member in self.members:
            try:
                member.on_end(summary)
            except OSError as error:
                self.failure = (
                    f"{type(member).__name__}: cannot write the end of the run ({error}); free space or restore the "
                    f"folder, then --resume auto: the checkpoints are whole"
                )

    def _tell(self, send: Callable[[Callback], None]) -> None:
        for member in self.members:
            try:
                send(member)
            except OSError as error:
                if member not in self._failed:
                    log.warning("%s cannot write (%s); training goes on", type(member).__name__, error)
                self._failed.add(member)


def standard_observers(
    config: RunConfig, *, launch: str | None = None, resumed_from: Path | None = None
) -> list[Callback]:
    """What a run from the command line is watched by. The rest is for its history: see `HistoryFile`."""
    from dynsparse.training.callbacks.closing import ClosingTable
    from dynsparse.training.callbacks.history_file import HistoryFile
    from dynsparse.training.callbacks.metrics_file import MetricsFile
    from dynsparse.training.callbacks.progress import progress
    from dynsparse.training.callbacks.summary_file import SummaryFile

    folder = config.folder
    members: list[Callback] = [
        HistoryFile(folder / "history.jsonl", launch=launch, resumed_from=resumed_from),
        MetricsFile(folder / "metrics.jsonl"),  # After the one that looks how far it went.
        SummaryFile(folder / "summary.json"),
    ]
    if config.log.tensorboard:
        from dynsparse.training.callbacks.tensorboard import TensorBoard

        members.append(TensorBoard(folder))
    members += progress(config.log.progress)
    members.append(ClosingTable(folder, tensorboard=config.log.tensorboard))
    return members
