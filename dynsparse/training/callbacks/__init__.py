"""Observers, one a file. `Observers` sends each report to all of them."""

from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks.base import (
    Callback,
    Display,
    EpochReport,
    RunReport,
    SamplesReport,
    ShrinkReport,
    StepReport,
    Summary,
    Writer,
)
from dynsparse.training.callbacks.observers import Observers
from dynsparse.training.callbacks.standard import standard_observers
from dynsparse.training.callbacks.tracking import require_trackers

__all__ = [
    "Callback",
    "Display",
    "EpochReport",
    "Observers",
    "ReallocationReport",
    "RunReport",
    "SamplesReport",
    "ShrinkReport",
    "StepReport",
    "Summary",
    "Writer",
    "require_trackers",
    "standard_observers",
]
