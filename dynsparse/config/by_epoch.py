"""Global batches and sizes of images by epoch, and the phases of training that they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from dynsparse.schedules import StepTable
from pipelines.common.by_epoch import NumberOrTable
from pipelines.phases import Phase

MOST_IN_A_BATCH = 1 << 20
LONGEST_SIDE = 8192
"""Pixels, as of `data.image_size`."""


def _table(most: int, of: str) -> Callable[[Any], int | StepTable]:
    """Return a function that reads a table of whole numbers from 1 to `most`, and raises ValueError for others."""

    def parse(raw: Any) -> int | StepTable:
        table = StepTable.parse(raw)
        for epoch, value in table.points:
            if value != int(value) or not 1 <= value <= most:
                raise ValueError(f"{value:g} at epoch {epoch} is no {of}; it must be whole, from 1 to {most:,}")
        points = tuple((epoch, int(value)) for epoch, value in table.points)
        return points[0][1] if len(points) == 1 else StepTable(points)

    return parse


GlobalBatch = Annotated[
    int | StepTable, NumberOrTable(_table(MOST_IN_A_BATCH, "number of samples"), StepTable.as_yaml, MOST_IN_A_BATCH)
]
"""Samples in an optimizer step: one number, or a table by epoch."""

ImageSize = Annotated[
    int | StepTable, NumberOrTable(_table(LONGEST_SIDE, "size of images in pixels"), StepTable.as_yaml, LONGEST_SIDE)
]
"""Height and width of images: one number, or a table by epoch."""


def at(value: int | StepTable, epoch: int) -> int:
    """Return the number that holds in an epoch, counted from 0."""
    return int(value.at(epoch)) if isinstance(value, StepTable) else value


def phases_of(global_batch: int | StepTable, image_size: int | StepTable | None, epochs: int) -> tuple[Phase, ...]:
    """Return the phases of a run of so many epochs. Entries of the tables that it does not reach make none."""
    tables = [value for value in (global_batch, image_size) if isinstance(value, StepTable)]
    firsts = {0, *(first for table in tables for first, _ in table.points if first < epochs)}
    return tuple(
        Phase(first, at(global_batch, first), None if image_size is None else at(image_size, first))
        for first in sorted(firsts)
    )
