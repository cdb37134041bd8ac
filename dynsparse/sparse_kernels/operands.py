"""A 2:4 weight as one side of a matrix product: on a GPU by torch's semi-structured kernels, elsewhere as a reference.

The reference has the same compressed values and metadata, in CUTLASS's layout, and multiplies what it expands them to.
It proves on a CPU that nothing is lost; it is not fast.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

DTYPES = (torch.float16, torch.bfloat16)
"""Types with kernels for 2:4. Those for float32 take 1:2, and would lose weights of a 2:4 pattern."""


class Operand(Protocol):
    """A weight [outputs, inputs] of 2:4 along its inputs; `both` ways also along its outputs."""

    def __init__(self, weight: Tensor, *, both: bool) -> None: ...

    def times(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply rows [n, inputs] with the transposed weight, and add the bias: [n, outputs]."""
        ...

    def back(self, rows: Tensor) -> Tensor:
        """Multiply rows [n, outputs] with the weight: [n, inputs]. Needs `both`."""
        ...


class OnGpu:
    """Operand of sparse tensor cores: cuSPARSELt where torch has it, else CUTLASS. RuntimeError for other shapes."""

    def __init__(self, weight: Tensor, *, both: bool) -> None:
        pack = _by_cusparselt if torch.backends.cusparselt.is_available() else _by_cutlass
        self._packed = pack(weight.contiguous(), both)

    def times(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """Return rows x weight^T + bias."""
        return nn.functional.linear(rows, self._packed, bias)

    def back(self, rows: Tensor) -> Tensor:
        """Return rows x weight."""
        return torch.mm(rows, self._packed)


class Reference:
    """Operand of the same compressed data, in CUTLASS's layout, expanded for each product. On any device."""

    def __init__(self, weight: Tensor, *, both: bool) -> None:
        self.packed = _by_cutlass(weight.contiguous(), both)

    def times(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """Return rows x weight^T + bias."""
        return nn.functional.linear(rows, self.packed.to_dense(), bias)

    def back(self, rows: Tensor) -> Tensor:
        """Return rows x weight, by the weight that was compressed along its outputs."""
        whole: Tensor = self.packed.t().to_dense()
        return rows @ whole.t()


def _by_cutlass(weight: Tensor, both: bool) -> Any:
    _require_type(weight)
    packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
    other = sparse_semi_structured_from_dense_cutlass(weight.t().contiguous()) if both else (None, None)
    return _tensor(SparseSemiStructuredTensorCUTLASS, weight, packed, meta, *other)


def _by_cusparselt(weight: Tensor, both: bool) -> Any:
    SparseSemiStructuredTensorCUSPARSELT._validate_device_dim_dtype_shape(weight)
    other = torch._cslt_compress(weight.t().contiguous()) if both else None
    return _tensor(SparseSemiStructuredTensorCUSPARSELT, weight, torch._cslt_compress(weight), None, other, None)


def _tensor(kind: Any, weight: Tensor, *parts: Tensor | None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # It says that torch's class is a prototype.
        packed, meta, packed_t, meta_t = parts
        return kind(weight.shape, packed, meta, packed_t, meta_t, None)


def _require_type(weight: Tensor) -> None:
    if weight.dtype not in DTYPES:
        raise RuntimeError(f"2:4 kernels take float16 and bfloat16, and the weight is {weight.dtype}")


class _Product(torch.autograd.Function):
    """Rows x weight^T + bias, where the weight is compressed for the forward pass and for the gradient of the rows.

    The gradient of the weight is dense: inactive weights may need theirs.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, operand: type[Operand]) -> Tensor:
        ctx.operand = operand(weight, both=True)
        ctx.save_for_backward(rows)
        ctx.has_bias = bias is not None
        return cast(Operand, ctx.operand).times(rows, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (rows,), gradient = ctx.saved_tensors, gradients[0].contiguous()
        of_rows = ctx.operand.back(gradient) if ctx.needs_input_grad[0] else None
        of_weight = gradient.t() @ rows if ctx.needs_input_grad[1] else None
        return of_rows, of_weight, gradient.sum(0) if ctx.has_bias else None, None


def product(rows: Tensor, weight: Tensor, bias: Tensor | None, operand: type[Operand]) -> Tensor:
    """Multiply [..., inputs] with a 2:4 transposable weight [outputs, inputs]: [..., outputs], with gradients.

    In the type of autocast where it is on, as `nn.functional.linear`.
    """
    apply: Any = _Product.apply
    kind = rows.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    flat = rows.to(dtype).reshape(-1, rows.shape[-1])
    with torch.autocast(kind, enabled=False):
        found: Tensor = apply(flat, weight.to(dtype), None if bias is None else bias.to(dtype), operand)
    return found.view(*rows.shape[:-1], -1)
