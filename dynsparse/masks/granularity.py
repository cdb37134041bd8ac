"""Sparse weight tensors, and the units of weights that live and die together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["conv", "fc"]
Granularity = Literal[1, 2, 3, 4]


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

    def __post_init__(self) -> None:
        assert 1 <= self.mask_dims <= len(self.shape), self

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
