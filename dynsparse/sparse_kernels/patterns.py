"""Layers that have 2:4 weights along their inputs, as sparse tensor cores and TensorRT take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class TwoOfFour:
    """Layers by the name of their weight."""

    layers: Sequence[str]
    """Layers with at most 2 of each 4 consecutive inputs, for each output and kernel position."""
    others: Mapping[str, str]
    """The other linear layers and convolutions, with what is in the way."""


def is_two_of_four(weight: Tensor, dim: int = 1) -> bool:
    """Whether at most 2 of each 4 consecutive entries along a dimension are not 0. Costs a copy to the host."""
    if weight.shape[dim] % 4:
        return False
    fours = (weight.detach() != 0).movedim(dim, -1).unflatten(-1, (-1, 4))
    return bool((fours.sum(-1) <= 2).all())


def weighted_layers(model: nn.Module) -> Iterator[tuple[str, Weighted]]:
    """Yield linear layers and convolutions that are not transposed, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            yield name, module


def found_patterns(model: nn.Module) -> TwoOfFour:
    """Look at all linear layers and convolutions of a model.

    TensorRT asks for zeros along the inputs, C of [K, C, R, S] and the summed dimension of a matrix (TensorRT's
    developer guide, "Sparsity"). It takes no grouped convolution.
    """
    named = [(f"{name}.weight" if name else "weight", module) for name, module in weighted_layers(model)]
    found = [(name, _obstacle(module)) for name, module in named]
    return TwoOfFour([name for name, why in found if why is None], {name: why for name, why in found if why})


def _obstacle(module: Weighted) -> str | None:
    if not isinstance(module, nn.Linear) and module.groups > 1:
        return f"{module.groups} groups"
    inputs = module.weight.shape[1]
    if inputs % 4:
        return f"{inputs} inputs, which 4 does not divide"
    return None if is_two_of_four(module.weight) else "more than 2 of some 4 inputs"
