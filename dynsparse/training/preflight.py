"""Refusals before a run begins: without a GPU, without other workers, and with nothing changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.methods.base import idle_words
from dynsparse.methods.clock import Schedule
from dynsparse.training.compatibility import require_same_layers, require_same_settings, require_same_shapes
from dynsparse.training.network import Network, build_method, build_network, build_without_weights
from dynsparse.training.sources import NOTHING, Sources, read_sources

log = logging.getLogger(__name__)


def require_samples_for_norm(model: nn.Module, config: RunConfig, workers: int) -> None:
    """Raise UserError if a worker would get a single sample at a time, which BatchNorm cannot train on.

    The model's modules matter, not its weights.
    """
    normalises = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if normalises and config.train.samples_at_once(workers) < 2:
        raise UserError(
            f"train.global_batch_size is {config.train.global_batch_size}: one sample at a time for each of "
            f"{workers} workers x {config.train.micro_batches} micro-batches; "
            "BatchNorm needs at least 2: take a larger batch or fewer parts"
        )


def warn_if_uneven(config: RunConfig, workers: int) -> None:
    """Warn if the parts of a global batch are not equally large."""
    train = config.train
    if train.global_batch_size % (workers * train.micro_batches):
        least = train.samples_at_once(workers)
        log.warning(
            "each of %d workers x %d micro-batches gets %d or %d samples of a global batch of %d; the loss is the "
            "mean over all of them",
            workers,
            train.micro_batches,
            least,
            least + 1,
            train.global_batch_size,
        )


def require_split(config: RunConfig, workers: int) -> None:
    """Raise UserError if a worker would get too few samples at a time: none, or one that BatchNorm cannot train on.

    Takes no memory: the model is built without weights.
    """
    config.require_split(workers)
    require_samples_for_norm(build_without_weights(config), config, workers)


def require_usable_sources(config: RunConfig) -> None:
    """Raise UserError for weights or masks to start from that cannot be read, or do not fit."""
    sources = read_sources(config)
    if sources != NOTHING:
        _build(config, sources)


def require_resumable(config: RunConfig, saved: Mapping[str, Any]) -> None:
    """Raise UserError for a checkpoint that cannot be resumed from under this config. Data are not looked at."""
    require_same_settings(saved, config)
    require_checkpoint_of(config, saved)


def require_checkpoint_of(config: RunConfig, saved: Mapping[str, Any]) -> None:
    """Raise UserError for a checkpoint of another network than the config's."""
    require_model_of(config, saved)
    network = _build(config, NOTHING)
    require_same_layers(saved, config, network.model, network.masks)


def require_model_of(config: RunConfig, saved: Mapping[str, Any]) -> None:
    """Raise UserError for a checkpoint whose shapes are not those of the config's model.

    Takes no memory: the config of a damaged checkpoint may ask for any amount.
    """
    if config.method.starts != "tied":  # Its weights get other names.
        require_same_shapes(saved, build_without_weights(config))


def _build(config: RunConfig, sources: Sources) -> Network:
    """Build a network on the CPU as a run does on its device, and refuse what a run would."""
    network = build_network(config, torch.device("cpu"), sources)
    specs = [layer.spec for layer in network.masks]
    build_method(config, specs).check(specs, {layer.name: layer.active_units for layer in network.masks})
    return network


def idle_warning(config: RunConfig, steps_per_epoch: int, done: int) -> str | None:
    """Warn of a method that will move no weights, as with a period that is longer than the run. None if it will.

    `done`: optimizer steps done before.
    """
    method, epochs = config.method.build(), config.train.epochs
    return idle_words(method, config.method.name, Schedule(epochs * steps_per_epoch, steps_per_epoch), done)
