"""A perceptron 64-128-10 and its data: at 90 % sparsity 947 of 9,472 weights are active."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dynsparse import SparseTraining

ACTIVE, WEIGHTS = 947, 9472


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def batch(seed: int = 0, samples: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 64, generator=generator), torch.randint(10, (samples,), generator=generator)


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    images, labels = batch(seed)
    return nn.functional.cross_entropy(model(images), labels)


def step(model: nn.Module, *optimizers: Any, seed: int = 0) -> None:
    """One step of a loop that knows nothing of sparsity."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss_of(model, seed).backward()
    for optimizer in optimizers:
        optimizer.step()


def outside(sparse: SparseTraining) -> int:
    """Weights outside the masks that are not 0, counted without the library's help."""
    return sum(int(torch.where(layer.mask, 0.0, layer.weight.detach()).count_nonzero()) for layer in sparse.masks)


def state_outside(sparse: SparseTraining, *optimizers: Any) -> int:
    """Entries of the optimizers' state outside the masks that are not 0."""
    return sum(
        int(torch.where(layer.mask, 0.0, value).count_nonzero())
        for optimizer in optimizers
        for layer in sparse.masks
        for value in optimizer.state.get(layer.weight, {}).values()
        if isinstance(value, Tensor) and value.shape == layer.weight.shape
    )


def nonzero(parameters: Iterable[nn.Parameter]) -> int:
    """Non-zero entries of the matrices among them."""
    return sum(int(parameter.count_nonzero()) for parameter in parameters if parameter.dim() == 2)


#: Methods with periods so short that a test sees several events.
MOVING: dict[str, dict[str, Any]] = {
    "deepr": {"name": "deepr", "eta": 1.0, "temperature": 1e-4},
    "dsr": {"name": "dsr", "period": 2, "initial_threshold": 0.02, "target_moves": 50},
    "rigl": {"name": "rigl", "period": 2, "until": 1.0},
    "set": {"name": "set", "period": 2},
    "sparse_momentum": {"name": "sparse_momentum", "period": 2},
}
