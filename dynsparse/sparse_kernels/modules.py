"""Linear layers and 1x1 convolutions whose weights are 2:4, for inference and for training."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from dynsparse.sparse_kernels.operands import Operand, product


class Compressed(nn.Module):
    """Layer for inference: it holds the compressed weight, and no dense one. [..., inputs] to [..., outputs]."""

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, operand: type[Operand]) -> None:
        super().__init__()
        self.operand = operand(weight.detach(), both=False)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the last dimension."""
        return self.operand.times(x.reshape(-1, x.shape[-1]), self.bias).view(*x.shape[:-1], -1)


class CompressedPointwise(Compressed):
    """1x1 convolution for inference: [n, inputs, height, width] to [n, outputs, ...]. Fastest as channels_last."""

    def __init__(self, conv: nn.Conv2d, operand: type[Operand]) -> None:
        super().__init__(conv.weight.flatten(1), conv.bias, operand)
        self.stride = conv.stride

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the channels of each pixel."""
        return super().forward(_pixels(x, self.stride)).permute(0, 3, 1, 2)


class TrainedLinear(nn.Linear):
    """Linear layer with its dense parameter, compressed anew in each training step; dense in evaluation mode.

    So an average of weights, whose masks were others, is right.
    """

    operand: type[Operand]

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the last dimension."""
        if not self.training:
            return super().forward(x)
        return product(x, self.weight, self.bias, self.operand)


class TrainedPointwise(nn.Conv2d):
    """1x1 convolution in the same way."""

    operand: type[Operand]

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the channels of each pixel."""
        if not self.training:
            return super().forward(x)
        stride = cast(tuple[int, int], self.stride)
        rows = product(_pixels(x, stride), self.weight.flatten(1), self.bias, self.operand)
        return rows.permute(0, 3, 1, 2)


def compressed(layer: nn.Linear | nn.Conv2d, operand: type[Operand]) -> Compressed:
    """Return the layer for inference."""
    if isinstance(layer, nn.Linear):
        return Compressed(layer.weight, layer.bias, operand)
    return CompressedPointwise(layer, operand)


def adopt(layer: nn.Linear | nn.Conv2d, operand: type[Operand]) -> None:
    """Let a layer train by compressed weights, in place: its parameters, hooks and names stay."""
    layer.__class__ = TrainedLinear if isinstance(layer, nn.Linear) else TrainedPointwise
    cast(TrainedLinear | TrainedPointwise, layer).operand = operand


def is_product(layer: nn.Module) -> bool:
    """Whether a layer is one product: nn.Linear itself, or nn.Conv2d of 1x1 without padding or groups."""
    if type(layer) is nn.Linear:
        return True
    if type(layer) is not nn.Conv2d:
        return False
    return layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding in ((0, 0), 0, "valid")


def _pixels(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Take the pixels that a 1x1 convolution reads: [n, height, width, channels]."""
    return x[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1)
