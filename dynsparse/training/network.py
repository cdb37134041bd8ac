"""From a config to a network and its masks, and the table that describes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dynsparse.config import RunConfig
from dynsparse.masks import LayerSpec, MaskSet, sparse_layers
from dynsparse.masks.allocation import uniform
from dynsparse.masks.granularity import Kind


@dataclass(frozen=True)
class Network:
    """A model with the masks that stand beside it."""

    model: nn.Module
    masks: MaskSet

    @property
    def total_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def model_sparsity(self) -> float:
        """Share of all the model's parameters that are held at 0."""
        return (self.masks.weights - self.masks.active_weights) / self.total_parameters

    def table(self) -> str:
        """The sparse layers with shape, unit, density and active weights, and both totals."""
        rows: list[tuple[str, ...]] = [("layer", "shape", "unit", "density", "active", "weights")]
        for layer in self.masks:
            spec = layer.spec
            shape, unit = "x".join(map(str, spec.shape)), "x".join(map(str, spec.shape[spec.mask_dims :])) or "1"
            share = layer.active_weights / spec.weights
            rows.append((spec.name, shape, unit, f"{share:.4f}", f"{layer.active_weights:,}", f"{spec.weights:,}"))
        masks, total = self.masks, self.total_parameters
        left = total - masks.weights + masks.active_weights
        for name, active, weights in (
            ("sparse layers", masks.active_weights, masks.weights),
            ("whole model", left, total),
        ):
            rows.append((name, "", "", f"{active / max(1, weights):.4f}", f"{active:,}", f"{weights:,}"))
        return align(rows)


def align(rows: Sequence[tuple[str, ...]]) -> str:
    """Text columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: tuple[str, ...]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        return "  ".join([row[0].ljust(widths[0]), *cells[1:]])

    return "\n".join(line(row) for row in rows)


def build_network(config: RunConfig, device: torch.device) -> Network:
    """The model on its device, initialised and masked by the config's seed: the same on every rank.

    Seeds and draws from torch's global generator. UserError for patterns that match no layer.
    """
    torch.manual_seed(config.seed)
    model = config.model.build(config.data.image_shape, config.data.classes)
    model.to(device)
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    specs = layer_specs(config, model)
    share: dict[Kind, float] = {"conv": config.sparsity.conv, "fc": config.sparsity.fc}
    if not config.method.sparse:
        share = {"conv": 0.0, "fc": 0.0}
    return Network(model, MaskSet(model, specs, uniform(specs, share), seed=config.seed))


def check_layers(config: RunConfig) -> None:
    """Raise UserError for patterns that match no layer. Takes no memory: the model is built without weights."""
    with torch.device("meta"):
        layer_specs(config, config.model.build(config.data.image_shape, config.data.classes))


def layer_specs(config: RunConfig, model: nn.Module) -> list[LayerSpec]:
    """The layers of the config's model that it asks to be sparse."""
    sparsity = config.sparsity
    return sparse_layers(
        model,
        default=config.model.sparse_by_default(model),
        include=sparsity.include,
        exclude=sparsity.exclude,
        granularity=sparsity.granularity,
    )
