"""Make a network smaller without a change of what it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynsparse.determinism import exact_float32
from dynsparse.errors import UserError
from dynsparse.shrinking.dead import Dead, dead_channels
from dynsparse.shrinking.groups import COMPACT, LAYERS, OUTPUTS, Graph, Group, first_line
from dynsparse.shrinking.independence import Outputs, difference, outputs_of
from dynsparse.shrinking.removal import tried


@dataclass(frozen=True)
class Compacted:
    """Report of what was taken out of a network."""

    layers: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Shape of each weight that has changed, before and after."""
    left_alone: Mapping[str, str]
    """Groups of channels that nothing was taken out of, each by a layer of it, with the reason."""
    difference: float
    """Largest difference between the outputs before and after, on random images."""


def compact(model: nn.Module, image_shape: tuple[int, int, int]) -> Compacted:
    """Take out every channel that no image has a use for, in place. The model has to be in evaluation mode.

    `image_shape`: channels, height, width. Weights and biases become other parameters; a layer may get a bias. Raises
    UserError for a network that torch-pruning cannot follow or that gives no single finite tensor, which stays as it
    was, and for one whose outputs have changed, which is then of no use.
    """
    images = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(next(model.parameters()))
    try:
        with torch.no_grad(), exact_float32():
            _require_tensor(model(images))
            before = outputs_of(model, images)
    except UserError:
        raise
    except Exception as error:  # As many kinds as there are networks.
        raise UserError(f"the network cannot take two images ({first_line(error)}): {COMPACT}") from error
    shapes = _shapes(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    try:
        while _pass(model, images):
            pass
        groups = tried(list(Graph(model, images)), model, images)
        obstacles = {one.root: one.obstacle for one in groups if one.obstacle not in ("", OUTPUTS)}
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
    with torch.no_grad(), exact_float32():
        largest = _difference(before, outputs_of(model, images))
    changed = {name: (shapes[name], now) for name, now in _shapes(model).items() if now != shapes[name]}
    return Compacted(changed, obstacles, largest)


def _require_tensor(outputs: object) -> None:
    """Raise UserError unless a network gives one tensor of numbers, which can be compared afterwards."""
    if not isinstance(outputs, Tensor):
        raise UserError(f"the network gives a {type(outputs).__name__} where one tensor is needed: {COMPACT}")
    if not bool(outputs.isfinite().all()):
        raise UserError(f"the network gives NaN or inf for random images: {COMPACT}")


def _difference(before: Outputs, after: Outputs) -> float:
    """Return the largest difference. Raises UserError where it is more than rounding."""
    (_, ours), (_, theirs) = before[0], after[0]
    if ours.shape != theirs.shape:
        raise UserError(f"the compact network has other outputs ({tuple(theirs.shape[1:])}): {COMPACT}")
    largest, differs = difference(before, after)
    if differs:
        raise UserError(f"the compact network differs by {largest:.2e} in an output: {COMPACT}")
    return largest


def _pass(model: nn.Module, images: Tensor) -> bool:
    """Take out what is dead now; what was read by it alone may be dead then. Returns whether there was any."""
    graph = Graph(model, images)
    groups = [group for group in tried(list(graph), model, images) if not group.obstacle]
    found = dead_channels(groups, model, images)
    for dead in found:
        for module, values in dead.biases:
            _add_bias(module, values)
    removed = _remove(graph, groups, found)
    return removed > 0


def _remove(graph: Graph, groups: Sequence[Group], found: Sequence[Dead]) -> int:
    for group, dead in zip(groups, found, strict=True):
        if dead.channels:
            graph.remove(group, dead.channels)
    return sum(len(dead.channels) for dead in found)


def _add_bias(module: nn.Module, values: Tensor) -> None:
    if not bool(values.any()):
        return
    bias = module.bias
    module.bias = nn.Parameter(values if bias is None else bias.detach() + values, requires_grad=False)  # type: ignore[operator]


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.weight": tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    }
