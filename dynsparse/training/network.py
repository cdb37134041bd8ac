"""From a config to a network and its masks, and the table that describes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dynsparse.config import RunConfig
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.allocation import uniform


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
        rows = [("layer", "shape", "unit", "density", "active", "weights")]
        for layer in self.masks:
            spec = layer.spec
            shape, unit = "x".join(map(str, spec.shape)), "x".join(map(str, spec.shape[spec.mask_dims :])) or "1"
            share = layer.active_weights / spec.weights
            rows.append((spec.name, shape, unit, f"{share:.4f}", f"{layer.active_weights:,}", f"{spec.weights:,}"))
        masks, total = self.masks, self.total_parameters
        left = total - masks.weights + masks.active_weights
        rows.append(("sparse layers", "", "", f"{1 - masks.sparsity:.4f}", f"{masks.active_weights:,}", f"{masks.weights:,}"))
        rows.append(("whole model", "", "", f"{left / total:.4f}", f"{left:,}", f"{total:,}"))
        return align(rows)


def align(rows: list[tuple[str, ...]]) -> str:
    """Text columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


def build_network(config: RunConfig, device: torch.device) -> Network:
    """The model on its device, initialised and masked by the config's seed: the same on every rank.

    Draws from torch's global generator. UserError for patterns that match no layer.
    """
    torch.manual_seed(config.seed)
    model = config.model.build(config.data.image_shape, config.data.classes)
    model.to(device)
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sparsity = config.sparsity
    specs = sparse_layers(
        model,
        default=config.model.sparse_by_default(model),
        include=sparsity.include,
        exclude=sparsity.exclude,
        granularity=sparsity.granularity,
    )
    share = {"conv": sparsity.conv, "fc": sparsity.fc} if config.method.sparse else {"conv": 0.0, "fc": 0.0}
    return Network(model, MaskSet(model, specs, uniform(specs, share), seed=config.seed))
