"""The gradients of a step as a method needs them, from backward until the reallocation that follows."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from dynsparse.masks import SparseLayer
from dynsparse.masks import block as blocks
from dynsparse.masks.costs import Costs
from dynsparse.masks.parted import Parted, Scores
from dynsparse.masks.structure import FREE
from dynsparse.methods import Method


@dataclass
class Seen:
    """Record of whole gradients, taken before they are masked. It belongs to one step and is passed on to its event.

    Nothing is learnt from it until the optimizer has used the gradients: a step that is skipped leaves no trace.
    """

    observed: dict[str, Tensor] = field(default_factory=dict)
    """Copies of the gradients by layer, for a method that keeps a record of them."""
    growth_costs: Costs = field(default_factory=Costs)
    """Negated growth scores by layer, float [units]: the lowest grow first."""
    unscored: dict[str, Tensor] = field(default_factory=dict)
    """Copies of gradients to score growth by, once the factor is known that a GradScaler has given them."""
    unless: dict[str, Tensor] = field(default_factory=dict)
    """Flags on the device, bool scalars, of layers that were learnt from before the host knew whether they may be.

    One is set where the layer's optimizer has skipped the step.
    """

    def add(self, other: Seen) -> None:
        """Take over what was seen of other layers."""
        self.observed |= other.observed
        self.unscored |= other.unscored
        self.growth_costs = self.growth_costs.adding(other.growth_costs)

    def keep(self, names: Container[str]) -> None:
        """Forget all layers but these: the gradients of the others are gone."""
        self.observed = {name: value for name, value in self.observed.items() if name in names}
        self.unscored = {name: value for name, value in self.unscored.items() if name in names}
        self.growth_costs = self.growth_costs.of(names)


def unscaled(values: Tensor, scale: Tensor | None) -> Tensor:
    """Remove the factor of a GradScaler, a scalar on the same device, if there is one."""
    return values if scale is None else values / scale


@dataclass(frozen=True)
class Kept:
    """Costs of a layer, until its event: where they are, or in the host's memory."""

    values: Tensor
    device: torch.device
    away: bool
    """Whether the host's memory has them."""

    def __call__(self) -> Tensor:
        """Return the costs on their device: themselves, or a copy."""
        return self.values.to(self.device, non_blocking=True, copy=self.away)


def growth_costs(
    method: Method,
    layers: Iterable[SparseLayer],
    stays: Container[str],
    scale: Tensor | None = None,
    gradients: Mapping[str, Tensor] = MappingProxyType({}),
) -> Costs:
    """Let the method score the units of these layers for growth. Layers that grow at random are absent.

    A GPU keeps those of the layers in `stays`. The others wait in the host's memory: the optimizer's step comes in
    between, and gradients are masked for it. The host waits for no copy. Large layers are scored in parts.

    `gradients`: those to score by, in place of what the layers have. `scale`: the factor of a GradScaler in them.
    """
    found = dict[str, Callable[[], Scores]]()
    for layer in layers:
        in_parts = in_parts_by(method, layer)
        with layer.with_gradient(gradients[layer.name]) if layer.name in gradients else nullcontext():
            parts = _parts(layer) if in_parts else [layer]
            kept = [_scored(method, part, layer.name in stays, scale) for part in parts]
        if (first := kept[0]) is not None:
            found[layer.name] = _parted(layer, kept) if in_parts else first
    return Costs(found)


def in_parts_by(method: Method, layer: SparseLayer) -> bool:
    """Whether the method's work on a layer is done in parts: it knows how, and the layer is a large one on a GPU."""
    return blocks.is_large(layer) and method.works_in_parts and layer.spec.structure == FREE and layer.divides


def drop_scores(method: Method, layer: SparseLayer) -> Scores:
    """Let the method score the active units of a layer for dropping, in parts if it is a large one."""
    if not in_parts_by(method, layer):
        return method.drop_scores(layer)
    return Parted(_parts(layer), lambda _, part: method.drop_scores(part), layer.active_units)


def _parts(layer: SparseLayer) -> Sequence[SparseLayer]:
    return layer.parts(blocks.A_PART)


def _scored(method: Method, layer: SparseLayer, stays: bool, scale: Tensor | None) -> Kept | None:
    """Let the method score a layer, or a part of one, and keep the costs. None: growth is at random.

    It sees gradients of their true size: scores of other rules than |gradient| do not grow by the factor `scale`.
    """
    gradient = layer.gradient
    with layer.with_gradient(gradient / scale) if gradient is not None and scale is not None else nullcontext():
        scores = method.grow_scores(layer)
    if scores is None:
        return None
    costs = -scores
    away = costs.is_cuda and not stays
    return Kept(to_host(costs) if away else costs, costs.device, away)


def _parted(layer: SparseLayer, kept: Sequence[Kept | None]) -> Callable[[], Parted]:
    """Return what gives the costs of a layer, of which the parts are kept."""
    known = [one for one in kept if one is not None]
    return lambda: Parted(_parts(layer), lambda k, _: known[k](), layer.spec.units)


def to_host(values: Tensor) -> Tensor:
    """Copy values of a GPU to pinned memory of the host, which does not wait for it."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.device.type == "cuda")
    return host.copy_(values, non_blocking=True)


def excluded(method: Method, layer: SparseLayer, costs: Scores) -> Scores:
    """Give units that may not grow an infinite cost, which no cut reaches: active ones as they are by now, and closed.

    All others cost less. Those whose score is NaN cost the most that a float can. In place.
    """
    if isinstance(costs, Parted):
        return costs.then(lambda part, one: _excluded(method, part, one))
    return _excluded(method, layer, costs)


def _excluded(method: Method, layer: SparseLayer, costs: Tensor) -> Tensor:
    most = torch.finfo(costs.dtype).max
    costs.nan_to_num_(most, most, -most).index_fill_(0, layer.active, float("inf"))
    closed = method.closed(layer)
    return costs if closed is None else costs.masked_fill_(closed, float("inf"))
