"""Optimizer state of sparse layers: cleared where weights are dropped, begun where they grow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, optim

from dynsparse.masks.layer import SparseLayer

SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
"""Names of the running mean of squared gradients in optimizers of the Adam family: torch's, timm's, RMSprop."""


def moments(optimizer: optim.Optimizer, layer: SparseLayer) -> Iterator[tuple[str, Tensor]]:
    """Yield the optimizer's tensors with one number a weight (momentum buffer, Adam's moments), with their keys."""
    for key, value in optimizer.state.get(layer.parameter, {}).items():
        if isinstance(value, Tensor) and value.shape == layer.parameter.shape and value.is_floating_point():
            yield key, layer.part(value)


def clear(optimizer: optim.Optimizer, layer: SparseLayer, units: Tensor) -> None:
    """Zero the state at `units` (int64 [k]) that were dropped, so that they do not move, and grow from 0."""
    for _, moment in moments(optimizer, layer):
        layer.zero_(moment, units)


def forget_directions(optimizers: Iterable[optim.Optimizer]) -> None:
    """Restart LBFGS: its directions lie in one flat tensor, over weights that were active before."""
    for optimizer in optimizers:
        if isinstance(optimizer, optim.LBFGS):
            optimizer.state.clear()


def begin(optimizer: optim.Optimizer, layer: SparseLayer, units: Tensor, gradients: Tensor | None) -> None:
    """Start the second moments of `units` (int64 [k]) that have just grown.

    Adam divides by the root of a mean that takes a thousand steps to fill. It corrects for that by the age of the run,
    not of the weight. Begun at 0, a weight that grows late would move by up to (1 - b1^k) / sqrt(1 - b2^k) = 6.5 times
    the rate. So the mean begins at its average over the layer's active weights, or at the square of the unit's own
    gradient (`gradients`, float [k], where known) if that is larger.
    """
    if units.numel() == 0:
        return
    for key, moment in moments(optimizer, layer):
        if (value := beginning(optimizer, layer, key, moment)) is None:
            continue
        value = value.expand(units.numel(), 1)
        if gradients is not None and key in SECOND_MOMENTS:
            own = gradients.to(moment.dtype).square() * _filled(optimizer, layer, key)
            value = torch.maximum(value, own[:, None])
        layer.put_(moment, units, value.expand(units.numel(), layer.spec.unit_size))


def beginning(optimizer: optim.Optimizer, layer: SparseLayer, key: str, moment: Tensor) -> Tensor | None:
    """Return the value, a scalar, with which the moment of this key begins late in a run. None for 0."""
    if key == "step_size":  # Rprop's, which only ever multiplies it.
        rate: Tensor | float = _group(optimizer, layer)["lr"]
        return torch.zeros((), device=moment.device) + rate  # Copies nothing to the device.
    if key not in SECOND_MOMENTS:
        return None
    active = layer.gather(moment)
    return active.sum() / (active != 0).sum().clamp(min=1)


def _filled(optimizer: optim.Optimizer, layer: SparseLayer, key: str) -> Tensor | float:
    """Fraction of a constant that the running mean of squares has reached: 1 - b2^step, 1 without correction.

    A scalar, where the optimizer has its step: the device takes one of the CPU without a copy.
    """
    step, betas = optimizer.state[layer.parameter].get("step"), _group(optimizer, layer).get("betas")
    if key == "square_avg" or step is None or betas is None:
        return 1.0
    return 1 - float(betas[1]) ** torch.as_tensor(step, dtype=torch.float32)


def _group(optimizer: optim.Optimizer, layer: SparseLayer) -> dict[str, Any]:
    """Parameter group that holds the layer's weight, {} if none does."""
    for group in optimizer.param_groups:
        if any(parameter is layer.parameter for parameter in group["params"]):
            return dict(group)
    return {}
