"""FLOPs of ResNet-50 beside those that RigL's authors published.

    python -m benchmarks.flops              (seconds; it computes shapes alone)
    python -m benchmarks.flops --page       (the page anew, from the JSON)

Multiples of the dense network in inference and training, as every run of the project counts them; and the same with two
conventions of the authors' script, with which their published figures follow.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.harness.page import filled
from benchmarks.harness.record import Result
from benchmarks.harness.script import page_parser, run
from dynsparse.flops import Costs, count, whole_steps
from dynsparse.masks import LayerSpec, sparse_layers
from dynsparse.masks.allocation import ALLOCATIONS
from dynsparse.methods.clock import Schedule
from dynsparse.methods.rigl import RiglSettings
from dynsparse.models.resnet50 import ResNet50Settings

IMAGE = (3, 224, 224)
FIRST = "conv1.weight"
SCHEDULE = Schedule(total_steps=32_000, steps_per_epoch=320)
"""RigL's 32,000 steps at a batch of 4096 (100 epochs): weights move every 100 steps of the first 25,000."""
PUBLISHED = {
    ("uniform", 0.8): 0.23,
    ("uniform", 0.9): 0.13,
    ("erk", 0.8): 0.42,
    ("erk", 0.9): 0.24,
}
"""Multiples in inference by the table in the authors' repository (google-research/rigl)."""
PADDED_TWICE = (115 / 112) ** 2
"""Outputs of the first convolution in the authors' script, over what it has: its input is padded already."""


class Holder(NamedTuple):
    """A sparse layer, as `Costs` reads it."""

    spec: LayerSpec
    name: str
    weight: nn.Parameter


def main() -> None:
    run("flops", page_parser(__doc__), measure, page)


def measure(asked: Namespace) -> Result:
    """Count each allocation at each sparsity."""
    model = network()
    outputs = convolution_outputs(model)
    cases = [case(model, outputs, allocation, sparsity) for allocation, sparsity in PUBLISHED]
    counted = count(model, IMAGE)
    assert counted is not None
    costs, active = allocated(model, "uniform", 0.9, exclude=[])
    every = costs.inference(active) / costs.dense
    return {"dense_flops": counted.total, "outputs": outputs, "cases": cases, "all_sparse": every}


def network() -> nn.Module:
    """Return ResNet-50 without weights."""
    with torch.device("meta"):
        return ResNet50Settings(name="imagenet_resnet50", sparse_downsample=True).build(IMAGE, classes=1000)


def case(model: nn.Module, outputs: int, allocation: str, sparsity: float) -> Result:
    """Count one network. With uniform sparsity its first convolution stays dense, as in the paper."""
    costs, active = allocated(model, allocation, sparsity, exclude=[FIRST] if allocation == "uniform" else [])
    share = whole_steps(RiglSettings(name="rigl", until=25_000 / 32_000).build(), SCHEDULE)
    steps = {whole: costs.step(active, whole=whole) for whole in (False, True)}
    return {
        "allocation": allocation,
        "sparsity": sparsity,
        "inference": costs.inference(active) / costs.dense,
        "training": (steps[False] * (1 - share) + steps[True] * share) / (3 * costs.dense),
        "as_published": as_published(costs, active, outputs),
        "published": PUBLISHED[allocation, sparsity],
    }


def allocated(
    model: nn.Module, allocation: str, sparsity: float, exclude: Sequence[str]
) -> tuple[Costs, dict[str, int]]:
    """Count the network, and the active weights of each layer that is not excluded."""
    specs = sparse_layers(model, include=["*"], exclude=exclude)
    parameters = dict(model.named_parameters())
    costs = Costs.of(model, [Holder(spec, spec.name, parameters[spec.name]) for spec in specs], IMAGE)
    assert costs is not None
    return costs, ALLOCATIONS[allocation](specs, {"conv": sparsity, "fc": sparsity})


def as_published(costs: Costs, active: Mapping[str, int], outputs: int) -> float:
    """Return the multiple in inference by the conventions of the authors' script.

    It counts an operation (ReLU) for each output of a convolution, at any density. It takes the first convolution to
    pad its input, which is padded before: 115 x 115 outputs, not 112 x 112.
    """
    first, weights = 2 * 112**2 * 64 * 147, 64 * 147
    more = round((PADDED_TWICE - 1) * first)
    extra = outputs + 64 * (115**2 - 112**2) + 1000
    sparse_first = more * active.get(FIRST, weights) // weights
    return (costs.inference(active) + sparse_first + extra) / (costs.dense + more + extra)


def convolution_outputs(model: nn.Module) -> int:
    """Count the outputs of all convolutions for one image."""
    found: list[int] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: found.append(output.numel()))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    count(model, IMAGE)
    for hook in hooks:
        hook.remove()
    return sum(found)


def page(content: Result) -> str:
    return filled("flops", content)


if __name__ == "__main__":
    main()
