"""Weights that torchvision publishes: read from torch's hub cache, or downloaded into it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from os.path import exists
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.models.base import PREFIX
from dynsparse.models.torchvision_models import published

_PATIENCE_SECONDS = 30.0
"""Seconds without a byte after which a download has failed."""


def asks_for_published(config: RunConfig) -> bool:
    """Return whether `model.weights` names published weights, not a file."""
    return (config.model.weights or "").startswith(PREFIX)


def cached_file(config: RunConfig) -> Path:
    """Return the place of the weights' file in torch's hub cache, whether it is there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(_entry(config).url).path).name


def read_published(config: RunConfig) -> dict[str, Tensor]:
    """Read the weights that `model.weights` names; download them first where they are not cached. UserError."""
    path, entry = cached_file(config), _entry(config)
    was_there = exists(path)
    try:
        with _patience():
            found = entry.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch.load and urllib raise about anything
        raise UserError(_unusable(path, error) if was_there else _unfetched(config, path, error)) from None
    return dict(found)


def _entry(config: RunConfig) -> Any:
    """Torchvision's entry of the weights. The config's validators have found that it exists."""
    return published(config.model.name)[str(config.model.weights).removeprefix(PREFIX)]


def _unusable(path: Path, error: Exception) -> str:
    return f"model.weights: {path} is damaged or cannot be read ({type(error).__name__}); remove it and start again"


def _unfetched(config: RunConfig, path: Path, error: Exception) -> str:
    return (
        f"model.weights: {config.model.weights} is not in torch's hub cache and cannot be downloaded "
        f"({getattr(error, 'reason', None) or error}); bring {_entry(config).url} to {path}, or name a file"
    )


@contextmanager
def _patience() -> Iterator[None]:
    """Limit the wait for each answer: torch's download would wait for ever where packets are dropped."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
