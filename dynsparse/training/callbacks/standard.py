"""The observers of a run from the command line."""

from __future__ import annotations

from pathlib import Path

from dynsparse.config.schema import RunConfig
from dynsparse.training.callbacks.base import Callback
from dynsparse.training.callbacks.closing import ClosingTable
from dynsparse.training.callbacks.history_file import HistoryFile
from dynsparse.training.callbacks.input_file import InputFile
from dynsparse.training.callbacks.metrics_file import MetricsFile
from dynsparse.training.callbacks.progress import progress
from dynsparse.training.callbacks.summary_file import SummaryFile
from dynsparse.training.callbacks.tracking import trackings
from dynsparse.training.run import names


def standard_observers(
    config: RunConfig, *, launch: str | None = None, resumed_from: Path | None = None
) -> list[Callback]:
    """Return the observers that the config asks for. `launch` and `resumed_from` are for the run's history."""
    folder = config.folder
    members: list[Callback] = [
        HistoryFile(folder / names.HISTORY, launch=launch, resumed_from=resumed_from),
        MetricsFile(folder / names.METRICS),  # After the one that looks how far it went.
        SummaryFile(folder / names.SUMMARY),
        InputFile(folder / names.INPUT),
    ]
    if config.log.tensorboard:
        # Slow to import: a run without TensorBoard starts sooner.
        from dynsparse.training.callbacks.tensorboard import TensorBoard

        members.append(TensorBoard(folder))
    members += progress(config.log.progress)
    members.append(ClosingTable(folder, tensorboard=config.log.tensorboard))
    members += trackings(config)  # Last: all else is written and said when the end waits for them.
    return members
