"""Outputs before and after a shrink, for families of torchvision's networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.harness.record import Result
from benchmarks.harness.runs import CPU, run_config
from dynsparse.config.schema import RunConfig
from dynsparse.masks import MaskSet
from dynsparse.masks.rows import by_parameter
from dynsparse.shrinking.groups import Graph, Group
from dynsparse.training.network import Network, build_network
from dynsparse.training.shrinking import find_unused, size_of, take_biases

DEAD = 0.4


def family(name: str, size: int) -> Result:
    """Starve 40 % of the channels that can go, shrink the network, and compare what it computes."""
    config = run_config(
        {"name": f"torchvision/{name}"},
        {"name": "static"},
        size,
        10,
        train={"epochs": 2, "shrink": {"at": [1]}},
        sparsity={"allocation": "erk"},
    )
    network = build_network(config, CPU)
    liven(network.model, torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(1)))
    groups = list(Graph(network.model.eval(), torch.randn(2, 3, size, size)))
    network = starved(network, config, groups)
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(2))
    before, size_before, budget = _outputs(network.model, images), size_of(network), network.active_weights
    found = find_unused(config, network, None, 1)
    take_biases([network.model], found)
    network.shrink(found.shrinkage, config)
    after, size_after = _outputs(network.model, images), size_of(network)
    left_alone: Counter[str] = Counter()
    for group in groups:
        left_alone[group.obstacle] += group.size * bool(group.obstacle)
    return {
        "network": name,
        "largest_output": float(before.abs().max()),
        "largest_difference": float((after - before).abs().max()),
        "channels_that_can_go": sum(group.size for group in groups if not group.obstacle),
        "left_alone": {reason: count for reason, count in left_alone.items() if count},
        "parameters": [size_before.parameters, size_after.parameters],
        "dense_flops": [size_before.dense_flops, size_after.dense_flops],
        "active_weights": [budget, network.active_weights],
    }


@torch.no_grad()
def liven(model: nn.Module, images: Tensor) -> None:
    """Give norms the statistics of images, and parameters next to 0 random numbers: else parts do next to nothing.

    ConvNeXt scales its branches by 1e-6 at first, and a fault in them would not show.
    """
    torch.manual_seed(3)
    for parameter in model.parameters():
        if float(parameter.abs().max()) < 1e-3:
            nn.init.normal_(parameter, std=0.1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def starved(network: Network, config: RunConfig, groups: Sequence[Group]) -> Network:
    """Take the readers' weights of 40 % of the channels, drawn by group, out of the masks and the network."""
    generator = torch.Generator().manual_seed(0)
    masks = {layer.name: layer.mask.clone() for layer in network.masks}
    parts = by_parameter(network.masks)
    for group in groups:
        dead = torch.rand(group.size, generator=generator) < DEAD * (not group.obstacle)
        for side in group.readers:
            for layer in parts.get(f"{side.name}.weight", ()):
                masks[layer.name][:, side.places[dead[side.channels]]] = False
    with torch.no_grad():
        for layer in network.masks:
            layer.weight.mul_(masks[layer.name])
    specs = [layer.spec for layer in network.masks]
    units = {spec.name: masks[spec.name].reshape(spec.units, -1)[:, 0].nonzero().flatten() for spec in specs}
    return replace(network, masks=MaskSet(network.model, specs, units, seed=config.seed))


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    found: Tensor = model.eval()(images)
    return found
