"""Sparse weight tensors, and the units of weights that live and die together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["conv", "fc"]
Granularity = Literal[1, 2, 3, 4]


@dataclass(frozen=True)
class RowBlock:
    """Place of a layer that is a part of a parameter: consecutive rows, from `start` on."""

    parameter: str
    """Name of the whole parameter."""
    start: int
    rows: int
    """Rows of the whole parameter: its first dimension."""


@dataclass(frozen=True)
class LayerSpec:
    """One sparse weight tensor and its division into units.

    A unit is the set of weights that are dropped and grown as one. The mask has one entry a unit and covers the first
    `mask_dims` dimensions of the weight. Units are numbered in row-major (logical) order of these dimensions, whatever
    the tensor's memory format.

    Example: a convolution (8, 4, 3, 3) with `mask_dims` 2 has 32 units of 9 weights; unit 5 is output 1, input 1.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    mask_dims: int
    outputs_first: bool = True
    """Whether the first dimension is the outputs, as in all layers but transposed convolutions."""
    block: RowBlock | None = None
    """Place in the parameter of a layer that is only a part of it, as attention's query, key and value are."""
    structure: str = "free"
    """Pattern of the mask: see `structure`."""

    def __post_init__(self) -> None:
        assert 1 <= self.mask_dims <= len(self.shape), self

    @property
    def parameter(self) -> str:
        """Name of the parameter that holds the weights: the layer's own, but for a part of one."""
        return self.name if self.block is None else self.block.parameter

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """Shape of that parameter."""
        return self.shape if self.block is None else (self.block.rows, *self.shape[1:])

    @property
    def rows(self) -> slice:
        """Rows of the parameter that are the layer's."""
        start = 0 if self.block is None else self.block.start
        return slice(start, start + self.shape[0])

    @property
    def units(self) -> int:
        """Units in the layer, active or not."""
        return math.prod(self.shape[: self.mask_dims])

    @property
    def unit_size(self) -> int:
        """Weights in a unit."""
        return math.prod(self.shape[self.mask_dims :])

    @property
    def weights(self) -> int:
        """Weights in the layer, active or not."""
        return math.prod(self.shape)

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Shape that broadcasts against the weight."""
        return self.shape[: self.mask_dims] + (1,) * (len(self.shape) - self.mask_dims)
