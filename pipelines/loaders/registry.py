"""The registry of loaders: `data.loader` selects `NAME_loader.py`, whose class is `THE_LOADER`."""

from __future__ import annotations

from importlib import import_module

from pipelines.base import Request
from pipelines.loaders.base import Loader
from pipelines.settings import DataSetSettings


def loader(settings: DataSetSettings, request: Request) -> Loader:
    """Return the loader that `data.loader` names. Imported only here: DALI is not available on every platform."""
    kind: type[Loader] = import_module(f"pipelines.loaders.{settings.loader}_loader").THE_LOADER
    half = settings.dtype == "float16"
    layout, most = request.channels_last, settings.pixel_limit
    return kind(settings.threads, request.device_id, half, layout, most, settings.decoding)
