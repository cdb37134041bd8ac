"""The layers that a model's settings make sparse, counted without building any weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dynsparse.masks import LayerSpec, sparse_layers
from dynsparse.masks.allocation import uniform
from dynsparse.masks.granularity import Kind
from dynsparse.models import ModelSettings


def without_weights(settings: ModelSettings, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    with torch.device("meta"):
        return settings.build(image_shape, classes)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def specs(settings: ModelSettings, model: nn.Module) -> list[LayerSpec]:
    return sparse_layers(model, default=settings.sparse_by_default(model))


@dataclass(frozen=True)
class Counts:
    """Weights of the sparse layers, those of them that are active, and all parameters that are left."""

    sparse: int
    active: int
    left: int


def counts(settings: ModelSettings, model: nn.Module, sparsity: dict[Kind, float]) -> Counts:
    layers = specs(settings, model)
    weights, active = sum(layer.weights for layer in layers), sum(uniform(layers, sparsity).values())
    return Counts(weights, active, parameters(model) - weights + active)
