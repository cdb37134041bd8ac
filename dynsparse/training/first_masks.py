"""First masks by score, from the very batches that training begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.first_masks import Example, ScoredMasks, Scoring
from dynsparse.masks import MaskSet
from dynsparse.runtime import Worker
from dynsparse.seeds import seed_for
from dynsparse.training.criterion import LOSSES
from dynsparse.training.freezing import fixed_norms
from dynsparse.training.network import Network
from dynsparse.training.sizes import training_shape
from pipelines.base import Batch, Data
from pipelines.common.epochs import EpochTable

KEY = "sparsity.initial"


def scored(config: RunConfig, network: Network, data: Data, worker: Worker) -> Network:
    """Return the network with first masks by score, if the config asks for them; all ranks call it together.

    Given is a network that is masked in any way, with its `initial_weights`. Scores are those of the dense network, in
    float32. The loss is that of the labels; a teacher takes no part. Training then sees the same batches again.
    """
    initial = config.sparsity.initial
    if not isinstance(initial, ScoredMasks):
        return network
    counts = {layer.name: layer.active_units for layer in network.masks}
    _unmask(network)
    for norm in fixed_norms(network.model):
        norm.eval()
    units = Scoring(
        initial,
        network.model,
        [layer.spec for layer in network.masks],
        counts,
        f"{KEY}: {initial.name}",
        examples=lambda: _examples(config, data, worker),
        loss=lambda logits, labels: LOSSES[config.train.loss](logits.float(), labels, config.train.label_smoothing),
        shape=training_shape(config, config.train.start_epoch),
    ).units()
    return _masked(config, network, units)


def require_batches(config: RunConfig, epochs: EpochTable) -> None:
    """Raise UserError if masks are to be scored on more batches than the first epoch has."""
    batches, steps = getattr(config.sparsity.initial, "batches", 0), epochs.steps(config.train.start_epoch)
    if batches > steps:
        raise UserError(f"{KEY}.batches is {batches}, and the first epoch has {steps:,} steps: set it to that or less")


@torch.no_grad()
def _unmask(network: Network) -> None:
    """Give the masked layers their whole weights again."""
    for layer in network.masks:
        if layer.name in network.initial_weights:
            layer.weight.copy_(network.initial_weights[layer.name])


def _masked(config: RunConfig, network: Network, units: dict[str, Tensor]) -> Network:
    """Return the network with these active units, whose other weights are 0."""
    specs, whole = [layer.spec for layer in network.masks], dict(network.model.named_parameters())
    initial = {
        spec.name: whole[spec.parameter].detach()[spec.rows].to("cpu", copy=True)
        for spec in specs
        if units[spec.name].numel() < spec.units
    }
    masks = MaskSet(network.model, specs, units, seed=config.seed)
    return replace(network, masks=masks, initial_weights=initial)


def _examples(config: RunConfig, data: Data, worker: Worker) -> list[Example]:
    """This worker's parts of the first batches, each with the seed that its step has in training."""
    require_batches(config, data.train.epochs)
    steps = _first_steps(config, data)
    samples = config.train.batch_at(config.train.start_epoch) * len(steps)
    done, first = data.train.epochs.before(config.train.start_epoch), worker.rank * config.train.micro_batches
    return [
        Example(images.float(), labels, len(labels) / samples, seed_for(config.seed, "forward", done + k, first + part))
        for k, step in enumerate(steps)
        for part, (images, labels) in enumerate(step)
    ]


def _first_steps(config: RunConfig, data: Data) -> Sequence[Sequence[Batch]]:
    """Read the first batches, and go back to before them."""
    first, train = config.train.start_epoch, data.train
    before = train.state_dict()
    train.seek(first, 0)
    try:
        return list(islice(train.epoch(), config.sparsity.initial.batches))  # type: ignore[union-attr]
    finally:
        train.seek(before["epoch"], before["batch"])
