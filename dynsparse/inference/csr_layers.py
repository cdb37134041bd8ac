"""Layers that multiply CSR matrices, for inference on the CPU: they skip the zeros of a weight."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional


def csr_parts(weight: Tensor, mask: Tensor) -> list[Tensor]:
    """Return row starts and columns (int32) and values of [rows, columns] as CSR: an entry wherever `mask` is True.

    [[0, 5], [0, 0], [7, 8]] gives starts 0, 1, 1, 3, columns 1, 0, 1 and values 5, 7, 8.

    MKL multiplies int32 indices as they are; int64 ones torch would convert at each call.
    """
    starts = torch.zeros(len(mask) + 1, dtype=torch.int32)
    starts[1:] = mask.sum(1).cumsum(0)
    return [starts, mask.nonzero()[:, 1].to(torch.int32), weight[mask]]


def to_csr(weight: Tensor, mask: Tensor) -> Tensor:
    """Return the matrix of `csr_parts` in torch's format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # It says that torch's CSR is in beta.
        starts, columns, values = csr_parts(weight, mask)
        return torch.sparse_csr_tensor(starts, columns, values, weight.shape, check_invariants=True)


class SparseLinear(nn.Module):
    """nn.Linear whose weight [out, in] is a CSR matrix; float32 [..., in] to [..., out]. For inference on the CPU."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Multiply with the matrix on the left: x times its transpose, as in nn.Linear, takes several times as long."""
        rows = x.reshape(-1, x.shape[-1])
        y = torch.mv(self.weight, rows[0])[None] if len(rows) == 1 else (self.weight @ rows.T).T
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)


class RowMajorSparseLinear(SparseLinear):
    """Same, with outputs in the memory order of nn.Linear, so that what follows takes no longer than after it."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [..., out] of [..., in], contiguous."""
        return super().forward(x).contiguous()


class SparseConv2d(nn.Module):
    """nn.Conv2d without groups whose weight is a CSR matrix [out, in x height x width]. For inference on the CPU.

    Each image becomes a matrix of patches [in x height x width, places]. For a 1x1 kernel that is the image itself, or
    every other pixel of it where the stride is 2.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d) -> None:
        """Take weight, bias and geometry of a layer with zero padding, given as numbers."""
        super().__init__()
        weight = layer.weight.detach().flatten(1).contiguous()
        self.register_buffer("weight", to_csr(weight, weight != 0))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone()[:, None])
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        assert not isinstance(layer.padding, str) and layer.groups == 1 and layer.padding_mode == "zeros", layer
        self.padding: tuple[int, ...] = layer.padding

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [batch, out, height, width] of [batch, in, height, width], in the input's memory order."""
        height, width = (self._size(length, axis) for axis, length in enumerate(x.shape[2:]))
        y = x.new_empty(len(x), self.weight.shape[0], height * width)
        for image, out in zip(x, y, strict=True):
            torch.mm(self.weight, self._patches(image), out=out)
        if self.bias is not None:
            y += self.bias
        y = y.view(len(x), -1, height, width)
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        return y.contiguous(memory_format=torch.channels_last) if last else y

    def _size(self, length: int, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (length + 2 * self.padding[axis] - reach) // self.stride[axis] + 1

    def _patches(self, image: Tensor) -> Tensor:
        """Return [in x height x width of the kernel, places] of [in, height, width]."""
        if self.kernel == (1, 1) and self.padding == (0, 0):
            pixels: Tensor = image[:, :: self.stride[0], :: self.stride[1]]
            return pixels.reshape(len(image), -1)
        patches: Tensor = functional.unfold(image[None], self.kernel, self.dilation, self.padding, self.stride)
        return patches[0]


def sparse_layer(layer: nn.Module) -> nn.Module | None:
    """Return a layer that multiplies a CSR matrix and gives the same outputs; None for a layer that cannot be one.

    It can where it is an nn.Linear or an nn.Conv2d itself: subclasses, such as attention's, may read the weight past
    `forward`. The weight is float32 on the CPU, and torch is built with MKL.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    if not torch.backends.mkl.is_available() or not bool(weight.any()) or _has_hooks(layer):
        return None
    if type(layer) is nn.Linear:
        bias = None if layer.bias is None else layer.bias.detach().clone()
        return RowMajorSparseLinear(to_csr(weight.detach(), weight != 0), bias)
    plain = type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
    return SparseConv2d(layer) if plain and not isinstance(layer.padding, str) else None  # type: ignore[arg-type]


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)
