"""The inactive weights of one layer that keep their values beside its mask, and train."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn, optim

from dynsparse.masks import optimizer_state
from dynsparse.masks.layer import SparseLayer
from dynsparse.optimizers.beside import State
from dynsparse.seeds import random_bits, seed_for


class LayerReserve:
    """Values of a layer's inactive weights. Those of the `units` train; the others rest.

    The parameter holds 0 in their place. `share` is the fraction of the layer's units that train beside the active
    ones: those of largest mean magnitude.
    """

    def __init__(self, layer: SparseLayer, share: float) -> None:
        """Begin with the values that the weights have outside the mask: 0 where they were masked before."""
        self.layer = layer
        self._most = round(Fraction(str(share)) * layer.spec.units)
        self.values = layer.weight.detach().clone()
        """Float of the weight's shape and layout, 0 where active."""
        layer.zero_(self.values, layer.active)
        self.units = torch.empty(0, dtype=torch.int64, device=self.values.device)
        """Inactive units that train: int64, rising. `Reserve` chooses them."""
        self.state: State = {}
        """The optimizer's state of their weights: moments, float [units x unit size], and what it has besides."""
        self.gradient: Tensor | None = None
        """Gradient of their weights, float [units x unit size], until a step uses it."""
        self._moments: dict[str, Tensor] = {}

    @property
    def count(self) -> int:
        """Number of inactive units that may train."""
        return min(self._most, self.layer.spec.units - self.layer.active_units)

    def costs(self) -> Tensor:
        """Negated mean magnitude of each unit, active or not: float [units].

        Inactive ones that are 0 come last, in an order drawn for the layer: else those of low index would come first.
        """
        layer = self.layer
        means = layer.unit_means(self.values.abs())
        places = torch.arange(layer.spec.units, device=means.device)
        wide = torch.promote_types(means.dtype, torch.float32)  # float16 ends at 65504.
        drawn = random_bits(seed_for("reserve", layer.name), places).to(wide).div_(2.0**63).to(means.dtype)
        active = layer.gather(layer.weight).abs_().mean(1)
        return torch.where(means == 0, drawn, -means).index_copy_(0, layer.active, -active)

    def inactive_costs(self) -> Tensor:
        """Return the costs with inf for active units, float [units]. No inactive one has NaN or inf."""
        return self.costs().nan_to_num_(nan=1).index_fill_(0, self.layer.active, torch.inf)

    def note(self, gradient: Tensor, pull: float) -> None:
        """Take the gradient of a step, of the weight's shape, and add `pull` times the values to it."""
        values = self.layer.at(self.values, self.units)
        self.gradient = self.layer.at(gradient, self.units).add_(values, alpha=pull).view(-1)

    def lent(self) -> nn.Parameter:
        """Copy the values that train, with their gradient, as a parameter of one dimension."""
        values = nn.Parameter(self.layer.at(self.values, self.units).view(-1))
        values.grad, self.gradient = self.gradient, None
        return values

    def take_back(self, values: Tensor) -> None:
        """Take the values over that `lent` gave, after the optimizer's step."""
        self.layer.put_(self.values, self.units, values)

    def open(self, optimizer: optim.Optimizer | None) -> None:
        """Copy what the active weights have, before units move: their values, and their state in the optimizer."""
        layer = self.layer
        layer.scatter_(self.values, layer.gather(layer.weight))
        theirs = dict(optimizer_state.moments(optimizer, layer)) if optimizer else {}
        if optimizer and not self.state:
            rest = {key: value for key, value in optimizer.state.get(layer.parameter, {}).items() if key not in theirs}
            self.state = copy.deepcopy(rest)
        ours = {key: value for key, value in self.state.items() if self._is_moment(value)}
        for key, moment in {**ours, **theirs}.items():
            self._moments[key] = torch.zeros_like(self.values, dtype=moment.dtype)
            if optimizer and key in theirs:
                first = optimizer_state.beginning(optimizer, layer, key, moment)
                self._moments[key] += 0 if first is None else first
                layer.scatter_(self._moments[key], layer.gather(moment))
            if key in ours:
                layer.put_(self._moments[key], self.units, ours[key])

    def give(self, optimizer: optim.Optimizer | None) -> None:
        """Give what has grown its state in the optimizer. `take` follows."""
        layer = self.layer
        for key, moment in optimizer_state.moments(optimizer, layer) if optimizer else ():
            if key in self._moments:
                layer.scatter_(moment, layer.gather(self._moments[key]))
        layer.zero_(self.values, layer.active)

    def take(self, units: Tensor) -> None:
        """Let these inactive units train from now on, int64, rising, with the state that they had."""
        self.units = units
        for key, dense in self._moments.items():
            self.state[key] = self.layer.at(dense, units).view(-1)
        self._moments = {}

    def _is_moment(self, value: Any) -> bool:
        size = self.units.numel() * self.layer.spec.unit_size
        return isinstance(value, Tensor) and value.shape == (size,) and value.is_floating_point()

    def tensors(self) -> list[Tensor]:
        """All that must be the same on every rank, on the device: the values, and the state by its keys."""
        state = [value for _, value in sorted(self.state.items()) if isinstance(value, Tensor)]
        return [self.values, *(value.to(self.values.device) for value in state)]

    def state_dict(self) -> dict[str, Any]:
        """Copy values, units and state to the CPU."""
        state = {key: value.cpu().clone() if isinstance(value, Tensor) else value for key, value in self.state.items()}
        return {"values": self.values.cpu().clone(), "units": self.units.cpu().clone(), "state": state}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave. Scalars of the state stay on the CPU until a step needs them elsewhere.

        ValueError if it is of another mask or optimizer.
        """
        self._require_of_this_mask(saved["units"], saved["state"])
        device = self.values.device
        self.values.copy_(saved["values"])
        self.units = saved["units"].to(device)
        self.state = {
            key: value.to(device if value.dim() else "cpu", copy=True) if isinstance(value, Tensor) else value
            for key, value in saved["state"].items()
        }
        self.gradient = None

    def _require_of_this_mask(self, units: Tensor, state: Mapping[str, Any]) -> None:
        name, size = self.layer.name, units.numel() * self.layer.spec.unit_size
        if bool(torch.isin(units.to(self.layer.device), self.layer.active).any()):
            raise ValueError(f"reserve.{name}.units are active")
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != (size,):
                raise ValueError(f"reserve.{name}.state.{key} has not one number for each weight that trains")


def problem_of(saved: Mapping[str, Any], shape: list[int], units: int) -> str | None:
    """Return what is wrong with a saved state, beginning with its key; None if nothing is. KeyError if a part lacks."""
    values, found = saved["values"], saved["units"]
    if not isinstance(values, Tensor) or list(values.shape) != shape or not values.is_floating_point():
        return "values is not of its layer's shape"
    if not isinstance(found, Tensor) or found.dtype != torch.int64 or found.dim() != 1:
        return "units is not a list of numbers"
    if found.numel() and (int(found.min()) < 0 or int(found.max()) >= units or bool((found.diff() <= 0).any())):
        return "units are not rising numbers of the layer's units"
    return None if isinstance(saved["state"], dict) else "state is not a table"
