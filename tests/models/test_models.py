from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dynsparse.models.mnist_mlp import MnistMlpSettings
from dynsparse.models.small_cnn import SmallCnnSettings


def test_mnist_mlp_is_the_papers() -> None:
    """784-300-100-10 with BatchNorm after each linear layer: 266,200 weights and 2 x 410 BatchNorm parameters."""
    model = MnistMlpSettings(name="mnist_mlp").build((1, 28, 28), 10)
    linear = [module for module in model if isinstance(module, nn.Linear)]
    assert [tuple(module.weight.shape) for module in linear] == [(300, 784), (100, 300), (10, 100)]
    assert all(module.bias is None for module in linear)
    assert sum(isinstance(module, nn.BatchNorm1d) for module in model) == 3
    assert sum(isinstance(module, nn.ReLU) for module in model) == 2
    assert sum(parameter.numel() for parameter in model.parameters()) == 266_200 + 820
    assert model(torch.zeros(4, 1, 28, 28)).shape == (4, 10)


def test_mnist_mlp_without_batch_norm_has_biases() -> None:
    model = MnistMlpSettings(name="mnist_mlp", batch_norm=False).build((1, 28, 28), 10)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in model)
    assert sum(parameter.numel() for parameter in model.parameters()) == 266_200 + 410


def test_linear_initialisation_is_uniform_by_fan_in() -> None:
    torch.manual_seed(0)
    weight = MnistMlpSettings(name="mnist_mlp").build((1, 28, 28), 10)[1].weight.detach()
    bound = 1 / math.sqrt(784)
    assert float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_small_cnn() -> None:
    model = SmallCnnSettings(name="small_cnn", channels=[4, 8]).build((3, 17, 9), 7)
    assert model(torch.zeros(2, 3, 17, 9)).shape == (2, 7)
