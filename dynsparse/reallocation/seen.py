"""The gradients of a step as a method needs them, from backward until the reallocation that follows."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
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
    """Negated growth scores by layer, float [units]: the lowest grow first."""

    def add(self, other: Seen) -> None:
        """Take over what was seen of other layers."""
        self.observed |= other.observed
        self.growth_costs |= other.growth_costs

    def keep(self, names: Container[str]) -> None:
        """Forget all layers but these: the gradients of the others are gone."""
        self.observed = {name: value for name, value in self.observed.items() if name in names}
        self.growth_costs = {name: value for name, value in self.growth_costs.items() if name in names}


def unscaled(values: Tensor, scale: Tensor | None) -> Tensor:
    """Remove the factor of a GradScaler, a scalar on the same device, if there is one."""
    return values if scale is None else values / scale


def growth_costs(method: Method, layers: Iterable[SparseLayer], scale: Tensor | None = None) -> dict[str, Tensor]:
    """Let the method score the units of these layers for growth. Layers that grow at random are absent."""
    costs = {}
    for layer in layers:
        scores = method.grow_scores(layer)
        if scores is not None:
            costs[layer.name] = -unscaled(scores, scale)
    return costs


def exclude_active(costs: Mapping[str, Tensor], layers: Iterable[SparseLayer]) -> None:
    """Give active units, as they are by now, an infinite cost, which no cut reaches. In place.

    All free units cost less. Those whose score is NaN cost the most that a float can.
    """
    for layer in layers:
        if (mine := costs.get(layer.name)) is not None:
            most = torch.finfo(mine.dtype).max
            mine.nan_to_num_(most, most, -most).index_fill_(0, layer.active, float("inf"))


def exclude_closed(method: Method, costs: Mapping[str, Tensor], layers: Iterable[SparseLayer]) -> None:
    """Give units that may not grow an infinite cost, which no cut reaches. In place."""
    for layer in layers:
        if layer.name in costs and (closed := method.closed(layer)) is not None:
            costs[layer.name].masked_fill_(closed, float("inf"))
