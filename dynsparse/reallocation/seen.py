"""The gradients of a step as a method needs them, from backward until the reallocation that follows."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynsparse.masks import SparseLayer
from dynsparse.methods import Method


@dataclass
class Seen:
    """Record of whole gradients, taken before they are masked. It belongs to one step and is passed on to its event.

    Nothing is learnt from it until the optimizer has used the gradients: a step that is skipped leaves no trace.
    """

    observed: dict[str, Tensor] = field(default_factory=dict)
    """Copies of the gradients by layer, for a method that keeps a record of them."""
    growth_costs: dict[str, Tensor] = field(default_factory=dict)
    """Negated growth scores by layer, float [units]: the lowest grow."""

    def keep_only(self, names: Container[str]) -> None:
        """Forget all other layers: their gradients are gone."""
        self.observed = {name: value for name, value in self.observed.items() if name in names}
        self.growth_costs = {name: value for name, value in self.growth_costs.items() if name in names}

    def observe(self, layer: SparseLayer, gradient: Tensor, scale: Tensor | None) -> None:
        """Copy a gradient, for its entries outside the mask are lost next."""
        self.observed[layer.name] = _unscaled(gradient, scale).clone()

    def score_growth(self, method: Method, layers: Iterable[SparseLayer], scale: Tensor | None = None) -> None:
        """Let the method score the units of these layers for growth."""
        for layer in layers:
            scores = method.grow_scores(layer)
            if scores is not None:
                self.growth_costs[layer.name] = -_unscaled(scores, scale)

    def exclude_active(self, layers: Iterable[SparseLayer]) -> None:
        """Give active units, as they are by now, an infinite cost, which no cut reaches. In place.

        All free units cost less. Those whose score is NaN or infinite cost the most a float can.
        """
        for layer in layers:
            if (costs := self.growth_costs.get(layer.name)) is not None:
                most = torch.finfo(costs.dtype).max
                costs.nan_to_num_(most, most, -most).index_fill_(0, layer.active, float("inf"))


def _unscaled(values: Tensor, scale: Tensor | None) -> Tensor:
    """Remove the factor of a GradScaler."""
    return values if scale is None else values / scale
