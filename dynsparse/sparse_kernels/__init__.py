"""2:4 weights on a GPU: linear layers and 1x1 convolutions through sparse tensor cores, where that is faster."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.sparse_kernels.choosing import Chosen, choose, cuda_seconds
from dynsparse.sparse_kernels.operands import DTYPES, OnGpu
from dynsparse.sparse_kernels.patterns import found_patterns

__all__ = ["Chosen", "found_patterns", "semi_structured"]

_LEAST_CAPABILITY = (8, 0)


def semi_structured(model: nn.Module, inputs: Tensor, *, training: bool = False) -> Chosen:
    """Run layers of 2:4 weights by torch's semi-structured kernels, in place, where it is faster on these inputs.

    For inference, a layer is replaced by one that holds the compressed weight alone: convert the model to float16 or
    bfloat16 before. With `training` the layers keep their parameters. They compress them in each step, and multiply by
    them in the forward pass and for the gradient of their inputs; the gradient of the weights is dense. That needs
    masks of 2:4 both ways (`method: {name: nm, transposable: true}`), and parameters or autocast of 16 bits; in
    evaluation mode the layers are dense.

    Args:
        model: on a CUDA device of compute capability 8.0 or above.
        inputs: a batch of the size that will be used, on the same device, in the model's own type.
        training: whether the model is to be trained on.

    Returns the layers that run so, with both times, and the reasons for the others. UserError for a model that is not
    on such a device, or whose weights have no 2:4 kernel.
    """
    _require_capable(model)
    if not training and not any(weight.dtype in DTYPES for weight in model.parameters()):
        raise UserError(
            "semi_structured() takes float16 or bfloat16 weights, and the model has none: call model.half() before"
        )
    return choose(model, inputs, OnGpu, cuda_seconds, training=training)


def _require_capable(model: nn.Module) -> None:
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    if device.type != "cuda":
        raise UserError(f"semi_structured() needs a CUDA device, and the model is on {device}: move it there before")
    if (found := torch.cuda.get_device_capability(device)) < _LEAST_CAPABILITY:
        raise UserError(
            f"semi_structured() needs compute capability 8.0, and {device} has {found[0]}.{found[1]}: run it dense"
        )
