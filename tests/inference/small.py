"""Networks that are sped up in tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(density: float = 0.02, seed: int = 0) -> nn.Sequential:
    """Three linear layers on images [batch, 3, 8, 8]; two of them sparse at random."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5)
    )
    thin(model[1], density)
    thin(model[3], density)
    return model.eval()


def cnn(density: float = 0.1) -> nn.Sequential:
    """Convolutions with BatchNorm on images [batch, 3, 8, 8]; half of the channels between two of them are dead."""
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 1, stride=2), nn.Conv2d(32, 16, 3, padding=1)
    first, second, third = convolutions
    thin(second, density)
    second.weight.data[0] = second.weight.data[:, 0] = 0.1  # No other channel is dead.
    thin(third, density)
    third.weight.data[:, 16:] = 0
    parts = (first, nn.BatchNorm2d(16), nn.ReLU(), second, nn.ReLU(), third, nn.ReLU())
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()


def thin(layer: nn.Module, density: float) -> None:
    """Leave a share of a layer's weights, chosen at random."""
    weight = layer.get_parameter("weight")
    weight.data *= torch.rand_like(weight) < density


class Clock:
    """A clock that stands still but where it is told that time passes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Slow(nn.Module):
    """A network that takes some time by a clock, and gives its input times a factor."""

    def __init__(self, seconds: float, clock: Clock, factor: float = 1.0) -> None:
        super().__init__()
        self.seconds, self.clock, self.factor = seconds, clock, factor

    def forward(self, images: Tensor) -> Tensor:
        self.clock.seconds += self.seconds
        return self.factor * images
