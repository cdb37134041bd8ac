"""The memory of tensors: in one dimension, as integers, and where an entry lies in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def flat_view(tensor: Tensor) -> Tensor:
    """The memory of a tensor without gaps as one dimension, without a copy, in whatever order it lies."""
    tensor = tensor.detach()
    assert is_dense(tensor), f"a tensor with gaps has no flat view: {tensor.shape} {tensor.stride()}"
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def is_dense(tensor: Tensor) -> bool:
    """Whether its memory has no gaps and no place for several entries."""
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return extent == tensor.numel()


def bits_of(values: Tensor) -> Tensor:
    """The same memory as integers of the same size."""
    return values.view(_INTEGERS[values.element_size()])


def sum_of(words: Tensor) -> Tensor:
    """Sum of integers, wrapping, of at least 32 bits: what adds nothing but zeros leaves it as it is."""
    return words.sum(dtype=words.dtype if words.element_size() >= 4 else torch.int32)


def nonzero(values: Tensor) -> Tensor:
    """int64 scalar: how many are not 0. On a processor NumPy counts integers ten times as fast as torch counts floats.

    -0 is no 0 there: an optimizer that leaves one outside a mask has multiplied, and may have more to leave.
    """
    if values.device.type != "cpu":
        return torch.count_nonzero(values)
    return torch.tensor(np.count_nonzero(bits_of(values).numpy()))


def is_row_major(shape: Sequence[int], strides: Sequence[int]) -> bool:
    row_major = (math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return all(size == 1 or ours == theirs for size, ours, theirs in zip(shape, row_major, strides, strict=True))


def strided(index: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Memory offsets of row-major indices over `shape`."""
    dims: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if dims and dims[-1][1] == size * stride:  # Both are one dimension: a division less.
            size, stride = dims.pop()[0] * size, stride
        dims.append((size, stride))
    offsets = torch.zeros_like(index)
    while len(dims) > 1:
        size, stride = dims.pop()
        above = index.div(size, rounding_mode="floor")
        offsets += (index - above * size) * stride
        index = above
    return offsets.add_(index, alpha=dims[0][1])
