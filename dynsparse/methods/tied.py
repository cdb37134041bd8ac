"""Tied weights: HashedNets."""

from __future__ import annotations

from typing import Literal

from torch import nn

from dynsparse.masks import LayerSpec
from dynsparse.masks.tying import TiedLayer, tie
from dynsparse.methods.base import Method, MethodSettings


class TiedSettings(MethodSettings):
    """HashedNets (Chen et al. 2015): every weight is there, and many share a value.

    A layer of n weights at sparsity s has a bank of round((1 - s) n) values, each used equally often to within one
    (see `dynsparse.masks.tying`). So it has as many values as a sparse layer has active weights.
    """

    name: Literal["tied"]
    rescale_gradient: bool = False
    """Divide the gradient of each value by the number of weights that share it."""

    def build(self) -> Method:
        return Method()

    @property
    def starts(self) -> Literal["tied"]:
        return "tied"

    def tie(self, model: nn.Module, spec: LayerSpec, values: int, *, seed: int) -> TiedLayer:
        return tie(model, spec, values, seed=seed, rescale_gradient=self.rescale_gradient)
