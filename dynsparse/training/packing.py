"""Weights, optimizer state, buffers and random state as plain data, and back.

A sparse layer keeps its active weights and their moments alone. A parameter that packs several layers keeps those of
each, and its dense rows whole, one after the other in one dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.rows import by_parameter, kept_values, put_values
from dynsparse.optimizers import WHOLE, makes_state_at_once, scalars_are_on_device


def pack_weights(model: nn.Module, masks: MaskSet) -> dict[str, Tensor]:
    """Copy parameters to the CPU, by name: sparse ones as [active units, unit size], the others whole."""
    layers = by_parameter(masks)
    return {name: _to_cpu(value, layers.get(name)) for name, value in model.named_parameters()}


@torch.no_grad()
def unpack_weights(model: nn.Module, masks: MaskSet, saved: Mapping[str, Tensor]) -> None:
    """Load what `pack_weights` gave, in place. The masks must be loaded already."""
    layers = by_parameter(masks)
    for name, parameter in model.named_parameters():
        if name in layers:
            parameter.zero_()
            put_values(parameter, layers[name], saved[name].flatten().to(parameter.device))
        else:
            parameter.copy_(saved[name])


def pack_optimizer(model: nn.Module, masks: MaskSet, optimizer: optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Copy optimizer state to the CPU, by parameter name. Moments of sparse layers are [active units, unit size]."""
    layers = by_parameter(masks)
    packed: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        parts = layers.get(name)
        packed[name] = {
            key: _to_cpu(value, parts if value.shape == parameter.shape and key not in WHOLE else None)
            if isinstance(value, Tensor)
            else value
            for key, value in optimizer.state.get(parameter, {}).items()
        }
    return packed


@torch.no_grad()
def unpack_optimizer(
    model: nn.Module, masks: MaskSet, optimizer: optim.Optimizer, saved: Mapping[str, Mapping[str, Any]]
) -> None:
    """Load what `pack_optimizer` gave, in place. The masks must be loaded already.

    A parameter that is frozen now gets none. One that was frozen begins with a momentum of 0, where that is the state:
    torch's fused SGD takes all of them or none. An optimizer that makes state before its first step, as Adagrad, keeps
    that where none is saved: it would make no other.
    """
    layers = by_parameter(masks)
    is_momentum = {key for one in saved.values() for key in one} == {"momentum_buffer"}
    for name, parameter in model.named_parameters():
        state: dict[str, Any] = {}
        for key, value in saved[name].items():
            if key in WHOLE and isinstance(value, Tensor):
                state[key] = value.to(parameter.device, copy=True)
            elif name in layers and isinstance(value, Tensor) and value.dim() == _dims(layers[name]) and key != "step":
                state[key] = torch.zeros_like(parameter)
                put_values(state[key], layers[name], value.flatten().to(parameter.device))
            elif isinstance(value, Tensor) and value.dim() > 0:
                state[key] = torch.empty_like(parameter).copy_(value)
            else:
                device = parameter.device if scalars_are_on_device(optimizer) else torch.device("cpu")
                state[key] = value.to(device, copy=True) if isinstance(value, Tensor) else value
        if is_momentum and not state:
            state = {"momentum_buffer": torch.zeros_like(parameter)}
        if state and (parameter.requires_grad or makes_state_at_once(optimizer)):
            optimizer.state[parameter] = state
        elif not makes_state_at_once(optimizer):
            optimizer.state.pop(parameter, None)


def pack_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copy the model's buffers to the CPU, by name."""
    return {name: _to_cpu(value) for name, value in buffers(model).items()}


@torch.no_grad()
def unpack_buffers(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Load what `pack_buffers` gave, in place."""
    for name, value in buffers(model).items():
        value.copy_(saved[name])


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers in the model's own `state_dict`, not copies of them. Others follow from the config."""
    kept = model.state_dict().keys()
    return {name: value for name, value in model.named_buffers() if name in kept}


def mean_buffers(saved: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average the floating point buffers of several ranks. Others, and those that are the same, are the first's."""
    return {
        name: torch.stack([one[name] for one in saved]).mean(0)
        if value.is_floating_point() and not all(torch.equal(one[name], value) for one in saved)
        else value
        for name, value in saved[0].items()
    }


def random_state(device: torch.device) -> dict[str, Tensor]:
    """States of torch's generators, of the CPU's and of the GPU's where `device` is one."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Load what `random_state` gave. A GPU keeps its own where none was saved."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def sparse_shapes(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that have sparse layers, given the layers of saved masks."""
    found = {}
    for name, layer in layers.items():
        block = layer.get("block") or {"parameter": name, "rows": layer["shape"][0]}
        found[block["parameter"]] = (block["rows"], *layer["shape"][1:])
    return found


def _dims(layers: Sequence[SparseLayer]) -> int:
    """Dimensions of what is stored of a parameter with these layers: 1 where it packs several, else 2."""
    return 2 if layers[0].spec.block is None else 1


def _to_cpu(value: Tensor, layers: Sequence[SparseLayer] | None = None) -> Tensor:
    """A contiguous copy on the CPU that later steps do not change, of the active weights alone if it has `layers`."""
    if layers:  # Both are copies already.
        return (layers[0].gather(value) if _dims(layers) == 2 else kept_values(value, layers)).cpu()
    return value.detach().to("cpu", copy=True).contiguous()
