"""The reserve: inactive weights that keep their values beside the masks, and train.

The parameter holds 0 outside its mask, so that forward passes, evaluation, averages, exports and checkpoints of the
weights see the active ones alone. A method that lets other weights learn keeps them here (Top-KAST, SR-STE). They get
the gradient of their places in the network, where they count as 0, and a step of the optimizer of the layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, optim

from dynsparse.masks.layer import SparseLayer
from dynsparse.masks.layer_reserve import LayerReserve, problem_of
from dynsparse.masks.maskset import MaskSet
from dynsparse.masks.selection import chosen, cuts_smallest
from dynsparse.optimizers import skips_on_device
from dynsparse.optimizers.beside import Group, State, holders, step_beside


class Reserve:
    """Reserves of all layers, each with the fraction `share` of its units in training."""

    @torch.no_grad()
    def __init__(self, masks: MaskSet, share: float = 1.0) -> None:
        self.layers = {layer.name: LayerReserve(layer, share) for layer in masks}
        self._choose()

    def costs(self, layer: SparseLayer) -> Tensor:
        """Negated mean magnitude of each unit of a layer, active or not: float [units]. See `LayerReserve.costs`."""
        return self.layers[layer.name].costs()

    def values(self, layer: SparseLayer, units: Tensor) -> Tensor:
        """Values of inactive units, int64 [k]: float [k, unit size]."""
        return layer.at(self.layers[layer.name].values, units)

    @torch.no_grad()
    def note(self, layer: SparseLayer, gradient: Tensor, pull: float) -> None:
        """Take a layer's whole gradient, of its weight's shape. The coming `step` adds `pull` times the values."""
        self.layers[layer.name].note(gradient, pull)

    @torch.no_grad()
    def step(self, optimizers: Sequence[optim.Optimizer], unless: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Let the values with a gradient make the step that their layers' optimizers make.

        `unless`: flags on the device by layer, bool scalars. Where one is set, the layer's optimizer has skipped its
        step, and so does the reserve. Only where it `can_skip`.
        """
        found = holders(optimizers)
        for optimizer in {id(one): one for one, _ in found.values()}.values():
            mine = [(part, found[key][1]) for part, key in self._due() if key in found and found[key][0] is optimizer]
            flags = [unless[part.layer.name] for part, _ in mine if part.layer.name in unless]
            _step(optimizer, mine, flags[0] if flags else None)  # A step of one optimizer has one flag.

    def can_skip(self, optimizers: Sequence[optim.Optimizer]) -> bool:
        """Return whether the device can skip the reserve's coming step by a flag, and nothing is left of it.

        The optimizers must be able to, and values must have state where their layer's weights have: in a first step
        torch's fused SGD takes memory for momentum, and would leave it unset (`optimizers.has_begun`).
        """
        found = holders(optimizers)
        parts = [(part, id(part.layer.parameter)) for part in self.layers.values() if part.units.numel()]
        moved = [(part, found[key][0]) for part, key in parts if key in found]
        return all(
            skips_on_device(optimizer) and (bool(part.state) or not optimizer.state.get(part.layer.parameter))
            for part, optimizer in moved
        )

    def _due(self) -> list[tuple[LayerReserve, int]]:
        """Reserves with a gradient, each with the identity of its layer's parameter."""
        parts = self.layers.values()
        return [(part, id(part.layer.parameter)) for part in parts if part.gradient is not None and part.units.numel()]

    @torch.no_grad()
    def open(self, optimizers: Sequence[optim.Optimizer]) -> None:
        """Copy what active weights have, before units move. `close` follows."""
        found = holders(optimizers)
        for part in self.layers.values():
            part.open(found.get(id(part.layer.parameter), (None,))[0])

    @torch.no_grad()
    def close(self, optimizers: Sequence[optim.Optimizer]) -> None:
        """Exchange optimizer state for what has moved, and choose what trains from now on."""
        found = holders(optimizers)
        for part in self.layers.values():
            part.give(found.get(id(part.layer.parameter), (None,))[0])
        self._choose()

    def _choose(self) -> None:
        """Let the largest inactive units of each layer train. Two copies to the host for all layers."""
        parts = list(self.layers.values())
        costs, counts = [part.inactive_costs() for part in parts], [part.count for part in parts]
        flags = [chosen(cost, cut) for cost, cut in zip(costs, cuts_smallest(costs, counts), strict=True)]
        numbers = torch.nonzero(torch.cat(flags)).squeeze(1).split(counts) if flags else ()
        starts = accumulate((len(cost) for cost in costs), initial=0)
        for part, units, start in zip(parts, numbers, starts, strict=False):
            part.take(units - start)

    def state_dict(self) -> dict[str, Any]:
        """State of each layer by name, on the CPU: plain data and tensors."""
        return {name: part.state_dict() for name, part in self.layers.items()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave. The masks must be of the same time."""
        for name, part in self.layers.items():
            part.load_state_dict(saved[name])


def check_saved(saved: Mapping[str, Any], layers: Mapping[str, Sequence[int]]) -> None:
    """Raise ValueError or KeyError, beginning with the key, if `saved` is no reserve of layers of these shapes."""
    for name, shape in layers.items():
        if (problem := problem_of(saved[name], list(shape), int(torch.Size(shape).numel()))) is not None:
            raise ValueError(f"{name}.{problem}")
    if strange := saved.keys() - layers.keys():
        raise ValueError(f"{min(strange)} is of no such layer")


def _step(
    optimizer: optim.Optimizer, parts: Sequence[tuple[LayerReserve, Group]], unless: Tensor | None = None
) -> None:
    """Make the step of one optimizer on the values of these layers, or none where a flag on the device is set."""
    if not parts:
        return
    lent = [part.lent() for part, _ in parts]
    for part, _ in parts:
        _place_scalars(part.state, optimizer.state.get(part.layer.parameter, {}))
    values_and_states = [(values, group, part.state) for values, (part, group) in zip(lent, parts, strict=True)]
    step_beside(optimizer, values_and_states, unless)
    for values, (part, _) in zip(lent, parts, strict=True):
        part.take_back(values)


def _place_scalars(state: State, like: State) -> None:
    """Move scalars of a state to where the optimizer has its own: after a load they are on the CPU."""
    for key, value in state.items():
        theirs = like.get(key)
        is_scalar = isinstance(value, Tensor) and not value.dim()
        if is_scalar and isinstance(theirs, Tensor) and value.device != theirs.device:
            state[key] = value.to(theirs.device)
