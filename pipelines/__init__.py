"""Data: which samples make up a batch, and how they get there. Imports nothing of dynsparse.

The registry of data sets is `DataSettings` in config.py; `build` below turns
settings into pipelines.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Light to import: what only checks a file must not wait for torch.
    from pipelines.base import Data, Request, TrainPipeline
    from pipelines.datasets.settings import DataSetSettings
    from pipelines.position import Position
    from pipelines.sources.base import Numbered


def build(settings: DataSetSettings, request: Request) -> Data:
    """The pipelines of the data set `settings.name`, from the module of that name.

    Imported only now, so that one data set's libraries do not burden another's run.
    """
    data: Data = import_module(f"pipelines.datasets.{settings.name}").build(settings, request)
    return data


def position_of(settings: DataSetSettings, request: Request) -> Position | TrainPipeline:
    """Where training begins, as `build` would have it: what an epoch is, and whether a saved position fits.

    Raises UserError where `build` would. Reads no more than labels where the data set's module says how (`listed`),
    and fetches nothing then.
    """
    module = import_module(f"pipelines.datasets.{settings.name}")
    if not hasattr(module, "listed"):
        return build(settings, request).train
    from pipelines.position import Position
    from pipelines.split import stratified

    source: Numbered = module.listed(settings)
    trained_on, _ = stratified(source.labels, settings.validation_samples, settings.split_seed)
    return Position(source, trained_on, request.seed, request.global_batch)


def prepare(settings: DataSetSettings) -> None:
    """What one process a machine must do before all build: fetch files. Raises UserError if it cannot."""
    module = import_module(f"pipelines.datasets.{settings.name}")
    if hasattr(module, "prepare"):
        module.prepare(settings)
