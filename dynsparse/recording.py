"""Record what layers of a network take, in the calls that it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def record_inputs(
    model: nn.Module, inputs: Tensor, layers: Mapping[str, nn.Module], keep: Callable[[str, Tensor], None]
) -> None:
    """Run the model on `inputs`, and call `keep(name, tensor)` with the first input of each call of the layers.

    `forward` is replaced for the while: hooks would keep nn.TransformerEncoderLayer from its fast path, which reads
    the weights of its layers itself.
    """
    before = {name: layer.__dict__.get("forward") for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.__dict__["forward"] = _recording(layer.forward, name, keep)
        model(inputs)
    finally:
        for name, layer in layers.items():
            layer.__dict__.pop("forward", None)
            if before[name] is not None:
                layer.__dict__["forward"] = before[name]


def _recording(forward: Callable[..., Tensor], name: str, keep: Callable[[str, Tensor], None]) -> Any:
    def record(*inputs: Tensor, **by_name: Tensor) -> Tensor:
        keep(name, (*inputs, *by_name.values())[0])
        return forward(*inputs, **by_name)

    return record
