"""A small network for the loops to train, with methods that reallocate often."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn, optim
from torch.utils.data import TensorDataset

CLASSES = 4
METHODS: dict[str, dict[str, Any]] = {
    "rigl": {"name": "rigl", "period": 3, "fraction": 0.3},
    "dsr": {"name": "dsr", "period": 3, "initial_threshold": 0.02, "target_moves": 40},
    "sparse_momentum": {"name": "sparse_momentum", "period": 3, "fraction": 0.3},
}
KEEP_LAYERS = ("rigl",)
"""Methods of these whose layers keep their number of active weights."""


def network() -> nn.Module:
    """Make the same network on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 16, CLASSES),
    )


def optimizer_for(method: str, model: nn.Module) -> optim.Optimizer:
    """Another for each method."""
    if method == "dsr":
        return optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    return optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=method == "sparse_momentum")


def images(number: int) -> TensorDataset:
    """Noise with something of its class in it."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (number,), generator=generator)
    pictures = torch.randn(number, 3, 8, 8, generator=generator)
    pictures[torch.arange(number), labels % 3, labels] += 2
    return TensorDataset(pictures, labels)


BY_GRADIENT = {"rigl": 0.0, "sparse_momentum": 0.9}
"""Methods that grow by the largest gradients, and with which momentum they sum them up."""
