"""Tensors that no checkpoint holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn


def _sparse(tensor: Tensor) -> Tensor:
    return (tensor.detach().float() if tensor.dim() else torch.ones(2, 2)).to_sparse()


def _csr(tensor: Tensor) -> Tensor:
    return (tensor.detach().float() if tensor.dim() == 2 else torch.ones(2, 2)).to_sparse_csr()


def _row_of_nothing(tensor: Tensor) -> Tensor:
    return tensor.new_zeros((0, *tensor.shape[1:])) if tensor.dim() else tensor.new_zeros(0)


def _filled(value: float) -> Callable[[Tensor], Tensor]:
    def fill(tensor: Tensor) -> Tensor:
        full = torch.full_like(tensor, value) if tensor.is_floating_point() else tensor.clone().float()
        return full if tensor.numel() else torch.tensor(value)

    return fill


def _nested(tensor: Tensor) -> Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "float64": lambda tensor: tensor.double(),
    "float16": lambda tensor: tensor.half(),
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "int64": lambda tensor: tensor.nan_to_num(0).long(),
    "int8": lambda tensor: tensor.nan_to_num(0).to(torch.int8),
    "bool": lambda tensor: tensor.bool(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "float8": lambda tensor: tensor.float().to(torch.float8_e4m3fn),
    "empty": lambda tensor: torch.empty(0),
    "without rows": _row_of_nothing,
    "0-dimensional": lambda tensor: torch.tensor(1, dtype=tensor.dtype),
    "one row more": lambda tensor: torch.cat([tensor, tensor[:1]]) if tensor.numel() and tensor.dim() else tensor[None],
    "one row less": lambda tensor: tensor[:-1].clone() if tensor.dim() else tensor[None],
    "flat": lambda tensor: tensor.reshape(-1).clone(),
    "one dimension more": lambda tensor: tensor[None].clone(),
    "turned": lambda tensor: (
        tensor.t().contiguous() if tensor.dim() == 2 else tensor.flip(0) if tensor.dim() else tensor
    ),
    "not contiguous": lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
    "of gigabytes, by stride 0": lambda tensor: torch.ones(1, dtype=tensor.dtype).expand(500_000_000),
    "of its shape, by stride 0": lambda tensor: torch.ones(1, dtype=tensor.dtype).expand(tensor.shape),
    "of exabytes, by stride 0": lambda tensor: torch.ones(1, dtype=torch.uint8).expand(2**60),
    "with a gradient": lambda tensor: tensor.detach().clone().float().requires_grad_(),
    "a parameter": lambda tensor: nn.Parameter(tensor.detach().float()),
    "on meta": lambda tensor: tensor.to("meta"),
    "on meta, of exabytes": lambda tensor: torch.empty(2**50, 2**10, device="meta", dtype=torch.uint8),
    "sparse": _sparse,
    "sparse CSR": _csr,
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor.detach().float(), 0.1, 0, torch.qint8),
    "nested": _nested,
    "conjugate": lambda tensor: torch.ones(2, dtype=torch.complex64).conj(),
    "NaN": _filled(float("nan")),
    "infinite": _filled(float("inf")),
    "huge": _filled(3e38),
    "zeros": _filled(0.0),
    "ones": lambda tensor: torch.ones_like(tensor),
    "all bits set": lambda tensor: torch.full_like(tensor, 255) if tensor.dtype == torch.uint8 else -tensor.clone(),
}


def another(rng: Random, tensor: Tensor) -> tuple[str, Tensor]:
    """A tensor in place of this one, and in which it differs."""
    name = rng.choice(list(OTHERS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return name, OTHERS[name](tensor.detach())
        except RuntimeError:  # Not of every kind of tensor.
            return "empty", torch.empty(0)
