"""Refusals before a run begins: without a GPU, without other workers, and with nothing changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dynsparse.config.own_file import told
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.methods.base import idle_words
from dynsparse.methods.clock import Schedule
from dynsparse.shrinking.kept import Shrinkage, shrinkages_in
from dynsparse.training.compatibility import require_same_layers, require_same_settings, require_same_shapes
from dynsparse.training.network import (
    Network,
    build_method,
    build_network,
    build_without_weights,
    method_without_weights,
)
from dynsparse.training.older import with_layers_of
from dynsparse.training.published import asks_for_published
from dynsparse.training.shrinking import require_coming
from dynsparse.training.sizes import require_sizes
from dynsparse.training.sources import (
    NOTHING,
    Sources,
    missing_sources,
    read_sources,
    require_sources,
)
from dynsparse.training.teacher import build_teacher, read_source, require_same_teacher
from pipelines.base import Data
from pipelines.common.epochs import EpochTable

log = logging.getLogger(__name__)


def require_samples_for_norm(model: nn.Module, config: RunConfig, workers: int) -> None:
    """Raise UserError if a worker would get a single sample at a time, which BatchNorm cannot train on.

    The model's modules matter, not its weights.
    """
    normalises = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    least = min(config.train.phases, key=lambda phase: phase.global_batch)
    if normalises and config.train.samples_at_once(workers, least.first) < 2:
        raise UserError(
            f"train.global_batch_size is {least.global_batch}{config.train.since(least)}: one sample at a time for "
            f"each of {workers} workers x {config.train.micro_batches} micro-batches; "
            "BatchNorm needs at least 2: take a larger batch or fewer parts"
        )


def require_warmup(config: RunConfig, epochs: EpochTable) -> None:
    """Raise UserError for a warm-up by steps that takes the whole run, or epochs of several lengths.

    The learning rate is a curve over epochs: see `EpochTable.in_first`.
    """
    warmup, steps = config.train.lr.warmup_steps, epochs.before(config.train.epochs)
    if warmup >= steps:
        raise UserError(
            f"train.lr.warmup_steps is {warmup:,}, and the run has {steps:,} steps{Schedule(steps, epochs).said}: the "
            f"rate would never reach its value; set it below that, or train longer"
        )
    if epochs.varies and warmup > epochs.alike:
        raise UserError(
            f"train.lr.warmup_steps is {warmup:,}, and after {epochs.alike:,} steps epochs have another length: set it "
            f"to that or less, or train.lr.warmup_epochs instead"
        )


def warn_if_uneven(config: RunConfig, workers: int) -> None:
    """Warn if the parts of a global batch are not equally large."""
    train = config.train
    unit = train.mixing.unit
    for batch, phase in {phase.global_batch: phase for phase in train.phases}.items():
        if batch % (workers * train.micro_batches * unit):
            least = train.samples_at_once(workers, phase.first)
            log.warning(
                "each of %d workers x %d micro-batches gets %d or %d samples of a global batch of %d; the loss is the "
                "mean over all of them",
                workers,
                train.micro_batches,
                least,
                least + unit,
                batch,
            )


def warn_if_stopped_by_test(config: RunConfig, data: Data) -> None:
    """Warn if the test samples decide when to stop: what they then say of the network flatters it."""
    if config.train.early_stop.patience is not None and data.validation is None:
        log.warning(
            "train.early_stop: there are no validation samples (data.validation_samples), so the test samples decide "
            "when to stop, and their accuracy flatters the network"
        )


def require_split(config: RunConfig, workers: int) -> None:
    """Raise UserError if a worker would get too few samples at a time: none, or one that BatchNorm cannot train on.

    So too if the network cannot take the images of a phase. Takes no memory: the model is built without weights.
    """
    config.require_split(workers)
    model = build_without_weights(config)
    require_samples_for_norm(model, config, workers)
    require_sizes(config, model)


def require_usable_sources(config: RunConfig) -> None:
    """Raise UserError for weights or masks to start from that cannot be read, or do not fit. Fetches nothing."""
    if asks_for_published(config) and any(line.startswith("model.weights") for line in missing_sources(config)):
        require_sources(config)  # The others. Published weights that are not in the cache are fetched by the start.
        return
    sources = read_sources(config)
    if sources != NOTHING:
        _build(config, sources)


def require_usable_teacher(config: RunConfig, saved: Mapping[str, Any] | None = None) -> None:
    """Raise UserError for a teacher that cannot be read, does not fit, or is not that of a checkpoint to resume."""
    source = read_source(config)
    teacher = None if source is None else build_teacher(config, source)
    if saved is not None:
        require_same_teacher(saved, None if teacher is None else teacher.digest)


def require_resumable(config: RunConfig, saved: Mapping[str, Any]) -> None:
    """Raise UserError for a checkpoint that cannot be resumed from under this config. Data are not looked at."""
    require_same_settings(saved, config)
    require_coming(saved, config)
    require_checkpoint_of(config, saved)


def require_checkpoint_of(config: RunConfig, saved: Mapping[str, Any]) -> None:
    """Raise UserError for a checkpoint of another network than the config's."""
    require_model_of(config, saved)
    network = _build(with_layers_of(config, saved), NOTHING, shrinkages_in(saved))
    require_same_layers(saved, config, network.model, network.masks)


def require_model_of(config: RunConfig, saved: Mapping[str, Any]) -> None:
    """Raise UserError for a checkpoint whose shapes are not those of the config's model.

    Takes no memory: the config of a damaged checkpoint may ask for any amount.
    """
    if config.method.starts != "tied":  # Its weights get other names.
        require_same_shapes(saved, build_without_weights(config, shrinkages_in(saved)))


def _build(config: RunConfig, sources: Sources, shrinkages: Sequence[Shrinkage] = ()) -> Network:
    """Build a network on the CPU as a run does on its device, and refuse what a run would."""
    network = build_network(config, torch.device("cpu"), sources, shrinkages)
    specs = [layer.spec for layer in network.masks]
    build_method(config, specs).check(specs, {layer.name: layer.active_units for layer in network.masks})
    return network


def idle_warning(config: RunConfig, lengths: EpochTable, done: int) -> str | None:
    """Warn of a method that will move no weights, as with a period that is longer than the run. None if it will.

    UserError for an `exploration` that the run cannot reach.

    `lengths`: of the epochs. `done`: optimizer steps done before.
    """
    schedule = Schedule(lengths.before(config.train.epochs), lengths)
    with told(config.method):
        return idle_words(method_without_weights(config, schedule), config.method.name, schedule, done)
