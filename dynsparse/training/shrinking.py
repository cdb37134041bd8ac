"""Shrinks of a run: when one is due, what it takes out, and what cannot shrink."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynsparse.config.schema import RunConfig
from dynsparse.determinism import exact_float32
from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, naming
from dynsparse.masks.rows import by_parameter, whole_mask
from dynsparse.shrinking.groups import Graph, Group, first_line, pruning_library
from dynsparse.shrinking.independence import Outputs, difference, outputs_of
from dynsparse.shrinking.kept import Shrinkage, shrinkages_in
from dynsparse.shrinking.removal import tried
from dynsparse.shrinking.sizes import Size, channels
from dynsparse.shrinking.unused import unused_channels
from dynsparse.training.network import Network, build_method, build_without_weights, layer_specs

log = logging.getLogger(__name__)
_SO = "leave train.shrink out"


@dataclass(frozen=True)
class Found:
    """Channels that a shrink takes out: plain data, the same on every rank."""

    shrinkage: Shrinkage
    biases: Sequence[Mapping[str, Tensor]]
    """Biases that take the numbers of channels that go, of the model and of the average of its weights."""


def is_due(config: RunConfig, network: Network, epoch: int, *, begins: bool) -> bool:
    """Return whether the network shrinks now, as an epoch `begins`: not where it has done so already."""
    shrink = config.train.shrink
    return shrink is not None and begins and epoch in shrink.at and epoch not in _done(network.shrinkages)


def find_unused(config: RunConfig, network: Network, average: nn.Module | None, epoch: int) -> Found:
    """Find what the network and the average of its weights can do without. Changes nothing but random states.

    It is proved on copies that both compute the same without it. UserError if they do not.
    """
    shape, device = config.data.image_shape, next(network.model.parameters()).device
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    copies = [copy.deepcopy(model).eval() for model in (network.model, average) if model is not None]
    with torch.no_grad(), exact_float32():
        before = [outputs_of(model, images) for model in copies]
        groups = _groups(config, network.shrinkages, limited=False)
        if not network.shrinkages:
            _tell_left_alone(groups)
        unused = unused_channels(
            groups,
            copies,
            _links(network.model, network.masks),
            images,
            _left(network.model, network.masks),
        )
        shrinkage = Shrinkage(epoch, unused.modules)
        for model, outputs in zip(copies, before, strict=True):
            _require_same(outputs, _outputs_without(shrinkage, model, images), epoch)
    return Found(shrinkage, unused.biases)


def _tell_left_alone(groups: Sequence[Group]) -> None:
    """Log how many channels stay whatever happens, with the reasons."""
    counts: Counter[str] = Counter()
    for group in groups:
        counts[group.obstacle] += group.size
    for reason, count in counts.items():
        if reason:
            log.info("train.shrink leaves %s channels alone: %s", f"{count:,}", reason)


@torch.no_grad()
def take_biases(models: Sequence[nn.Module], found: Found) -> None:
    """Set the biases that take the numbers of channels that go, before these go."""
    for model, biases in zip(models, found.biases, strict=True):
        for name, values in biases.items():
            model.get_submodule(name).get_parameter("bias").copy_(values)


def require_shrinkable(config: RunConfig) -> None:
    """Raise UserError for a method or a network that cannot lose channels. Takes no memory: nothing has weights."""
    if config.train.shrink is None:
        return
    pruning_library("train.shrink")
    model = build_without_weights(config)
    with torch.device("meta"):
        specs = layer_specs(config, model)
        obstacle = build_method(config, specs).shrink_obstacle
    if obstacle:
        raise UserError(f"train.shrink does not go with method {config.method.name}, which {obstacle}: {_SO}")
    groups = _groups(config, (), limited=True)
    if all(group.obstacle for group in groups):
        raise UserError(
            f"train.shrink: no channel of {config.model.name} can go ({groups[0].root}: {groups[0].obstacle}); {_SO}"
            if groups
            else f"train.shrink: {config.model.name} has no layers whose channels can go; {_SO}"
        )


def require_coming(saved: Mapping[str, Any], config: RunConfig) -> None:
    """Raise UserError where a run that resumes is asked for a shrink before what it has trained."""
    if config.train.shrink is None:
        return
    done, now = _done(shrinkages_in(saved)), saved["progress"]["epoch"]
    first = now if saved["data"]["batch"] == 0 else now + 1
    for epoch in config.train.shrink.at:
        if epoch not in done and epoch < first:
            raise UserError(
                f"train.shrink.at names epoch {epoch}, which the checkpoint has trained in without a shrink; name "
                f"epochs to come, or resume from an earlier checkpoint"
            )


def size_of(network: Network) -> Size:
    """Return the size of a network now."""
    return Size(channels(network.model), network.parameters, network.costs.dense if network.costs else None)


def _done(shrinkages: Sequence[Shrinkage]) -> set[int]:
    return {one.epoch for one in shrinkages}


def _groups(config: RunConfig, shrinkages: Sequence[Shrinkage], *, limited: bool) -> list[Group]:
    """Return the groups of channels of the config's network, as small as it has become. UserError as in `Graph`."""
    model = build_without_weights(config, shrinkages).eval()
    images = torch.empty(2, *config.data.image_shape, device="meta")
    try:
        with torch.enable_grad():
            groups = list(Graph(model, images, limited=limited, so=_SO))
        return tried(groups, model, images)
    except UserError as error:
        raise UserError(f"train.shrink: {error.lines[0]}") from None


def _links(model: nn.Module, masks: MaskSet) -> dict[str, Tensor]:
    """Return which inputs each output of a module with masks has an active weight for: bool (outputs, inputs)."""
    weights = naming.named_parameters(model)
    found = {}
    for name, layers in by_parameter(masks).items():
        mask = whole_mask(weights[name], layers)
        found[name.rpartition(".")[0]] = mask.flatten(2).any(2) if mask.dim() > 2 else mask
    return found


def _left(model: nn.Module, masks: MaskSet) -> set[str]:
    """Return the modules whose channels stay: they pack several layers, or share a parameter with others."""
    packed = {layer.spec.parameter for layer in masks if layer.spec.block is not None}
    holders: dict[int, list[str]] = {}
    for name, _, _, parameter in naming.places(model):
        holders.setdefault(id(parameter), []).append(name)
    shared = {name for names in holders.values() if len(names) > 1 for name in names}
    return {name.rpartition(".")[0] for name in packed | shared}


def _outputs_without(shrinkage: Shrinkage, model: nn.Module, images: Tensor) -> Outputs:
    """Return what a model gives after a shrink, in place, in evaluation mode. UserError if it does not run."""
    try:
        shrinkage.apply(model)
        return outputs_of(model.eval(), images)
    except Exception as error:  # As many kinds as there are networks.
        raise UserError(
            f"train.shrink: without the channels of no use before epoch {shrinkage.epoch}, the network does not run "
            f"({first_line(error)}); {_SO}, and resume"
        ) from error


def _require_same(before: Outputs, after: Outputs, epoch: int) -> None:
    largest, differs = difference(before, after)
    if differs:
        raise UserError(
            f"train.shrink: without the channels of no use before epoch {epoch}, the network would differ by "
            f"{largest:.2e} in an output; {_SO}, and resume"
        )
