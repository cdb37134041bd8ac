"""Sizes of a network: inputs and outputs of its layers, parameters, FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from dynsparse.tables import align

Channels = tuple[int, int]
"""Inputs and outputs of a layer."""


@dataclass(frozen=True)
class Size:
    """Size of a network at one moment."""

    layers: Mapping[str, Channels]
    """Inputs and outputs of each convolution and linear layer, by the module's name."""
    parameters: int
    dense_flops: int | None
    """FLOPs of one image if every weight were active; None where they cannot be counted."""


def channels(model: nn.Module) -> dict[str, Channels]:
    """Return inputs and outputs of each convolution and linear layer, by the module's name."""
    found: dict[str, Channels] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = module.in_channels, module.out_channels
        elif isinstance(module, nn.Linear):
            found[name] = module.in_features, module.out_features
    return found


def compared(before: Size, after: Size) -> str:
    """Return a table of the layers that are smaller now, with their channels, and a row of the whole network."""
    rows = [("layer", "inputs", "outputs", "parameters", "FLOPs, dense")]
    for name, now in after.layers.items():
        if (old := before.layers[name]) != now:
            rows.append((name, _arrow(old[0], now[0]), _arrow(old[1], now[1]), "", ""))
    flops = _arrow(before.dense_flops, after.dense_flops)
    rows.append(("whole network", "", "", _arrow(before.parameters, after.parameters), flops))
    return "\n".join(line.rstrip() for line in align(rows).splitlines())


def _arrow(before: int | None, after: int | None) -> str:
    words = ["-" if value is None else f"{value:,}" for value in (before, after)]
    return words[0] if words[0] == words[1] else " -> ".join(words)
