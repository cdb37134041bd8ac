"""Weights, optimizer state, buffers and random state as plain data and back.

Of sparse layers only the active weights and their moments are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim

from dynsparse.masks import MaskSet, SparseLayer


def pack_weights(model: nn.Module, masks: MaskSet) -> dict[str, Tensor]:
    """Parameters by name: sparse ones as [active units, unit size], the others whole. On the CPU."""
    layers = _by_name(masks)
    return {name: _to_cpu(value, layers.get(name)) for name, value in model.named_parameters()}


@torch.no_grad()
def unpack_weights(model: nn.Module, masks: MaskSet, saved: Mapping[str, Tensor]) -> None:
    """The inverse of `pack_weights`, in place; the masks must be loaded already."""
    layers = _by_name(masks)
    for name, parameter in model.named_parameters():
        if name in layers:
            parameter.zero_()
            layers[name].scatter_(parameter, saved[name].to(parameter.device))
        else:
            parameter.copy_(saved[name])


def pack_optimizer(model: nn.Module, masks: MaskSet, optimizer: optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Optimizer state by parameter name, moments of sparse layers as [active units, unit size]."""
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
    """The inverse of `pack_optimizer`, in place; the masks must be loaded already."""
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
    return {name: _to_cpu(value) for name, value in buffers(model).items()}


@torch.no_grad()
def unpack_buffers(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    for name, value in buffers(model).items():
        value.copy_(saved[name])


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that the model's own `state_dict` has, themselves and not copies: others follow from the config."""
    kept = model.state_dict().keys()
    return {name: value for name, value in model.named_buffers() if name in kept}


def mean_buffers(saved: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One set of buffers from several ranks': floating point ones averaged, others of the first."""
    return {
        name: torch.stack([one[name] for one in saved]).mean(0) if value.is_floating_point() else value
        for name, value in saved[0].items()
    }


def random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _by_name(masks: MaskSet) -> dict[str, SparseLayer]:
    return {layer.name: layer for layer in masks}


def _to_cpu(value: Tensor, layer: SparseLayer | None = None) -> Tensor:
    """A contiguous copy on the CPU, that later steps do not change; of `layer`'s active weights if given."""
    if layer is not None:
        return layer.gather(value).cpu()  # A copy already.
    return value.detach().to("cpu", copy=True).contiguous()
