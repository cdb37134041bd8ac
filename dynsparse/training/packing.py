"""Weights, optimizer state, buffers and random state as plain data, and back.

A sparse layer keeps its active weights and their moments alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim

from dynsparse.masks import MaskSet, SparseLayer


def pack_weights(model: nn.Module, masks: MaskSet) -> dict[str, Tensor]:
    """Copy parameters to the CPU, by name: sparse ones as [active units, unit size], the others whole."""
    layers = _by_name(masks)
    return {name: _to_cpu(value, layers.get(name)) for name, value in model.named_parameters()}


@torch.no_grad()
def unpack_weights(model: nn.Module, masks: MaskSet, saved: Mapping[str, Tensor]) -> None:
    """Load what `pack_weights` gave, in place. The masks must be loaded already."""
    layers = _by_name(masks)
    for name, parameter in model.named_parameters():
        if name in layers:
            parameter.zero_()
            layers[name].scatter_(parameter, saved[name].to(parameter.device))
        else:
            parameter.copy_(saved[name])


def pack_optimizer(model: nn.Module, masks: MaskSet, optimizer: optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Copy optimizer state to the CPU, by parameter name. Moments of sparse layers are [active units, unit size]."""
    layers = _by_name(masks)
    packed: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        layer = layers.get(name)
        packed[name] = {
            key: _to_cpu(value, layer if value.shape == parameter.shape else None)
            if isinstance(value, Tensor)
            else value
            for key, value in optimizer.state.get(parameter, {}).items()
        }
    return packed


@torch.no_grad()
def unpack_optimizer(
    model: nn.Module, masks: MaskSet, optimizer: optim.Optimizer, saved: Mapping[str, Mapping[str, Any]]
) -> None:
    """Load what `pack_optimizer` gave, in place. The masks must be loaded already."""
    layers = _by_name(masks)
    for name, parameter in model.named_parameters():
        state: dict[str, Any] = {}
        for key, value in saved[name].items():
            if name in layers and isinstance(value, Tensor) and value.dim() == 2 and key != "step":
                state[key] = torch.zeros_like(parameter)
                layers[name].scatter_(state[key], value.to(parameter.device))
            elif isinstance(value, Tensor) and value.dim() > 0:
                state[key] = torch.empty_like(parameter).copy_(value)
            else:
                state[key] = value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
        if state:
            optimizer.state[parameter] = state
        else:
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
    """Average the floating point buffers of several ranks, and take the others of the first."""
    return {
        name: torch.stack([one[name] for one in saved]).mean(0) if value.is_floating_point() else value
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


def _by_name(masks: MaskSet) -> dict[str, SparseLayer]:
    return {layer.name: layer for layer in masks}


def _to_cpu(value: Tensor, layer: SparseLayer | None = None) -> Tensor:
    """A contiguous copy on the CPU that later steps do not change, of the active weights alone if `layer` is given."""
    if layer is not None:
        return layer.gather(value).cpu()  # A copy already.
    return value.detach().to("cpu", copy=True).contiguous()
