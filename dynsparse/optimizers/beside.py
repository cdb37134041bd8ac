"""An optimizer's step on values that stand beside its parameters: the same rule, rates and decay."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn, optim

Group = Mapping[str, Any]
State = dict[str, Any]

_OWN = ("step", "grad_scale", "found_inf")
"""Attributes that others set on one optimizer: a scheduler's wrapper of its step, a GradScaler's factors."""


def holders(optimizers: Iterable[optim.Optimizer]) -> dict[int, tuple[optim.Optimizer, Group]]:
    """Find the optimizer that moves each parameter, by its identity, and the parameter's group.

    Of those that hold others, as wrappers do, the innermost counts; of several, the last.
    """
    inner = [one for one in optimizers if not any(isinstance(held, optim.Optimizer) for held in vars(one).values())]
    return {id(parameter): (one, group) for one in inner for group in one.param_groups for parameter in group["params"]}


@torch.no_grad()
def step_beside(
    optimizer: optim.Optimizer, values: Sequence[tuple[nn.Parameter, Group, State]], unless: Tensor | None = None
) -> None:
    """Make the optimizer's step on other values with gradients, in place. Its own parameters and state stay.

    Each comes with the group whose options hold for it, and with its state, which is empty before the first step and is
    changed in place. An optimizer that `skips_on_device` makes no step where `unless`, a bool scalar there, is set.
    """
    for value, group, state in values:
        kind: Any = type(optimizer)
        if not state and _has_state_when_made(kind):
            state.update(_when_made(kind, value, group))
    twin = object.__new__(type(optimizer))
    twin.__dict__.update({key: value for key, value in vars(optimizer).items() if key not in _OWN})
    twin.param_groups = [{**group, "params": [value]} for value, group, _ in values]
    twin.state = defaultdict(dict, {value: state for value, _, state in values})
    if unless is not None:
        twin.found_inf = unless.float()  # type: ignore[attr-defined]
    twin._optimizer_step_pre_hooks, twin._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
    twin.step()


@cache
def _has_state_when_made(kind: type[optim.Optimizer]) -> bool:
    """Whether an optimizer has state before its first step, and counts on it, as Adagrad of torch 2.11 does."""
    return bool(_when_made(kind, nn.Parameter(torch.zeros(1)), {}))


def _when_made(kind: type[optim.Optimizer], value: nn.Parameter, group: Group) -> State:
    """Return the state of a parameter in a new optimizer of this kind: {} where it comes with the first step."""
    try:
        options = {name: group[name] for name in signature(kind).parameters if name in group and name != "params"}
        return dict(kind([value], **options).state[value])
    except Exception:  # noqa: BLE001 - it cannot be made so: then it has no state
        return {}


def steps_alone(optimizer: optim.Optimizer, group: Group, like: Tensor) -> bool:
    """Whether a step moves a weight the same way, whatever the shape of the tensor that it lies in.

    It is tried on a matrix and on its entries as one dimension, of dtype and device of `like`. Muon fails on the
    latter. Adafactor keeps one second moment for each row and column of the former.
    """
    values = torch.tensor([[1.0, 2.0], [3.0, -4.0]], dtype=like.dtype, device=like.device)
    devices, kind = ([like.device], like.device.type) if like.is_cuda else ([], "cuda")
    with torch.random.fork_rng(devices, device_type=kind):
        try:
            matrix, entries = (_tried(optimizer, group, one.clone()) for one in (values, values.view(-1)))
        except Exception:  # noqa: BLE001 - whatever it is, the step cannot be made
            return False
    return torch.equal(matrix.view(-1), entries)


def _tried(optimizer: optim.Optimizer, group: Group, values: Tensor) -> Tensor:
    """Values after a step with a rate that is not 0, whose gradient they are themselves."""
    torch.manual_seed(0)
    rate = group.get("lr")
    moving = {"lr": torch.ones_like(rate) if isinstance(rate, Tensor) else 1.0} if rate is not None else {}
    parameter = nn.Parameter(values.clone())
    parameter.grad = values
    step_beside(optimizer, [(parameter, {**group, **moving}, {})])
    return parameter.detach()
