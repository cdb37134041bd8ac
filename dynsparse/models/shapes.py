"""Networks without memory: construction and forward passes that compute shapes alone, on torch's meta device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextmanager
def without_weights() -> Iterator[None]:
    """Make parameters on the meta device and other tensors on the CPU: some constructors compute their widths."""

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type] # torch's forgets results
    try:
        with torch.device("cpu"):
            yield
    finally:
        hook.remove()


def on_meta(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the model's shapes on the meta device, by their first names."""
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    return {name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad) for name, tensor in tensors}


def forward(model: nn.Module, tensors: Mapping[str, Tensor], image_shape: tuple[int, int, int]) -> object:
    """Return the output for one image, as in evaluation, with these tensors (`on_meta`) in place of the model's.

    Modules keep their modes. Gradients are enabled: without them attention takes a path of one fused operator.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.enable_grad():
            return functional_call(model.eval(), dict(tensors), (torch.empty(1, *image_shape, device="meta"),))
    finally:
        for module, training in modes:
            module.training = training
