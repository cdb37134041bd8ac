"""Which weights are sparse, and which of them live and die together."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from dynsparse.errors import UserError, nearest

Kind = Literal["conv", "fc"]
Granularity = Literal[1, 2, 3, 4]


@dataclass(frozen=True)
class LayerSpec:
    """One sparse weight tensor and its division into units.

    A unit is the set of weights that are dropped and grown as one. The mask has
    one entry a unit and covers the first `mask_dims` dimensions of the weight;
    units are numbered in row-major (logical) order of these dimensions,
    whatever the tensor's memory format.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    mask_dims: int

    def __post_init__(self) -> None:
        assert 1 <= self.mask_dims <= len(self.shape), self

    @property
    def units(self) -> int:
        return math.prod(self.shape[: self.mask_dims])

    @property
    def unit_size(self) -> int:
        """Weights in a unit."""
        return math.prod(self.shape[self.mask_dims :])

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Shape that broadcasts against the weight."""
        return self.shape[: self.mask_dims] + (1,) * (len(self.shape) - self.mask_dims)


def weight_kinds(model: nn.Module) -> dict[str, Kind]:
    """Names of all weights that can be sparse, in the model's order, with their kind."""
    kinds: dict[str, Kind] = {}
    parameters = {id(parameter) for _, parameter in model.named_parameters()}
    for prefix, module in model.named_modules():
        name = f"{prefix}.weight" if prefix else "weight"
        # A parameter used twice is listed once, under its first name.
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and id(module.weight) in parameters:
            kinds[name] = "conv"
        elif isinstance(module, nn.Linear) and id(module.weight) in parameters:
            kinds[name] = "fc"
        else:
            continue
        parameters.discard(id(module.weight))
    return kinds


def sparse_layers(
    model: nn.Module,
    *,
    default: Sequence[str] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    granularity: Granularity = 4,
) -> list[LayerSpec]:
    """The layers to make sparse.

    `default` are the names that the model itself proposes (all weights of
    convolutions and linear layers if None); `include` and `exclude` are shell
    patterns over parameter names (`layer3.*`), `include` replaces the default.
    Granularity g of a convolution (out, in, kh, kw): 4 element, 3 kernel row,
    2 kernel slice, 1 filter. Linear weights are always elementwise (paper's
    code). Raises UserError for a pattern that matches nothing.
    """
    kinds = weight_kinds(model)
    chosen = set(kinds if default is None else default)
    if include is not None:
        chosen = _matching(include, kinds, "sparsity.include")
    chosen -= _matching(exclude, kinds, "sparsity.exclude")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return [
        LayerSpec(name, kind, shapes[name], mask_dims=_mask_dims(kind, shapes[name], granularity))
        for name, kind in kinds.items()
        if name in chosen
    ]


def _mask_dims(kind: Kind, shape: tuple[int, ...], granularity: Granularity) -> int:
    return len(shape) if kind == "fc" else min(granularity, len(shape))


def _matching(patterns: Iterable[str], names: Iterable[str], key: str) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise UserError(f"{key}: '{pattern}' matches no convolution or linear weight{nearest(pattern, names)}")
        found.update(matches)
    return found
