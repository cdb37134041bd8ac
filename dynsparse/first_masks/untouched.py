"""A model that is as it was after it has been tried: weights, buffers, modes and random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dynsparse.masks.naming import modules


@contextmanager
def untouched(model: nn.Module, weights: Callable[[Tensor], Tensor] | None = None) -> Iterator[None]:
    """Let the body use the model, and give it back as it was.

    Forward passes write to copies of its buffers. With `weights` all parameters and buffers have the values that it
    returns meanwhile. Modes, `requires_grad` and torch's random numbers are restored. No `.grad` is made by
    `autograd.grad`, and the body is to use no other way.
    """
    every = [module for _, module in modules(model)]
    parameters, modes = list(model.parameters()), [module.training for module in every]
    values, needed = [one.data for one in parameters], [one.requires_grad for one in parameters]
    buffers = [dict(module._buffers) for module in every]
    try:
        with torch.random.fork_rng(_devices(parameters)), torch.autocast(_kind(parameters), enabled=False):
            for module in every:
                module._buffers.update({key: _copied(value, weights) for key, value in module._buffers.items()})
            for one in parameters:
                one.data = one.data if weights is None else weights(one.data)
            yield
    finally:
        for parameter, value, needs in zip(parameters, values, needed, strict=True):
            parameter.data = value
            parameter.requires_grad_(needs)
        for module, mode, own in zip(every, modes, buffers, strict=True):
            module.training = mode
            module._buffers.update(own)


def _copied(value: Tensor | None, weights: Callable[[Tensor], Tensor] | None) -> Tensor | None:
    if value is None:
        return None
    return value.clone() if weights is None or not value.is_floating_point() else weights(value)


def _devices(parameters: list[nn.Parameter]) -> list[int]:
    return list(range(torch.cuda.device_count())) if any(one.is_cuda for one in parameters) else []


def _kind(parameters: list[nn.Parameter]) -> str:
    return parameters[0].device.type
