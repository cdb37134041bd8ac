"""Data: which samples make up a batch, and how they get there. Imports nothing of dynsparse.

The registry of data sets is `DataSettings` in config.py; `build` below turns
settings into pipelines.
"""

from __future__ import annotations

from importlib import import_module

from pipelines.base import Data, Request
from pipelines.config import DataSetSettings


def build(settings: DataSetSettings, request: Request) -> Data:
    """The pipelines of the data set `settings.name`, from the module of that name.

    Imported only now, so that one data set's libraries do not burden another's run.
    """
    data: Data = import_module(f"pipelines.{settings.name}").build(settings, request)
    return data


def prepare(settings: DataSetSettings) -> None:
    """What one process a machine must do before all build: fetch files. Raises DataError if it cannot."""
    module = import_module(f"pipelines.{settings.name}")
    if hasattr(module, "prepare"):
        module.prepare(settings)
