"""Data: which samples make up a batch, and how they get there. Imports nothing of dynsparse.

The functions below turn settings into pipelines. A data set is the module of its settings: it has `build`, and may have
`check_files`, `fetch` and `listed`. The registry is `datasets/registry.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Light to import: code that only needs pipelines.common must not wait for torch.
    from pipelines.base import Data, Request, TrainPipeline
    from pipelines.position import Position
    from pipelines.settings import DataSetSettings


def check(settings: DataSetSettings) -> None:
    """Raise UserError if the data cannot be there. Runs before any process group or GPU is touched."""
    settings.require_loader()
    _call(settings, "check_files")


def fetch(settings: DataSetSettings) -> None:
    """Fetch files. One process a machine calls this, before all call `build`. Raises UserError if it cannot."""
    _call(settings, "fetch")


def build(settings: DataSetSettings, request: Request) -> Data:
    """Return the pipelines of a data set. Raises UserError if its data cannot be used."""
    data: Data = _module(settings).build(settings, request)
    return data


def position_of(settings: DataSetSettings, request: Request) -> Position | TrainPipeline:
    """Return where training begins, as `build` would have it, to learn the epoch's length or try a saved position.

    Raises UserError where `build` would. With a data set that has `listed`, reads no more than labels and fetches
    nothing.
    """
    from pipelines.position import Position  # Light to import: see above.
    from pipelines.split import stratified

    if not hasattr(_module(settings), "listed"):
        return build(settings, request).train
    source = _module(settings).listed(settings)
    trained_on, _ = stratified(source.labels, settings.validation_samples, settings.split_seed)
    return Position(source, trained_on, request.seed, request.training, settings.repeats)


def _call(settings: DataSetSettings, name: str) -> None:
    """Call a function of the data set, if it has one of this name."""
    if hasattr(module := _module(settings), name):
        getattr(module, name)(settings)


def _module(settings: DataSetSettings) -> Any:
    return import_module(type(settings).__module__)
