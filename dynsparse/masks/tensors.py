"""The memory of tensors: in one dimension, as integers, and the place of an entry in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from dynsparse import later

AT_ONCE = 1 << 22
"""Values of a large tensor that are copied or counted at once."""
Counted = TypeVar("Counted", bound="HasNumel")
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class HasNumel(Protocol):
    """Tensor, or what is as long as one."""

    def numel(self) -> int:
        """Number of entries."""


def flat_view(tensor: Tensor) -> Tensor:
    """View the memory of a tensor without gaps as one dimension, in the order of its addresses. No copy."""
    tensor = tensor.detach()
    assert is_dense(tensor), f"a tensor with gaps has no flat view: {tensor.shape} {tensor.stride()}"
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def is_dense(tensor: Tensor) -> bool:
    """Whether the memory has no gaps, and no place that several entries share."""
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return extent == tensor.numel()


def row_pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield all values of a tensor in logical order, in pieces of at most AT_ONCE, or of one row: 1 dimension each."""
    rows = max(1, AT_ONCE * len(tensor) // max(1, tensor.numel()))
    return (piece.contiguous().view(-1) for piece in tensor.detach().split(rows))


def bits_of(values: Tensor) -> Tensor:
    """View values as integers of the same size."""
    return values.view(_INTEGERS[values.element_size()])


@torch.no_grad()
def copy_(tensors: Sequence[Tensor], others: Sequence[Tensor], where: Tensor | None = None) -> None:
    """Copy `others` into `tensors`, one into each, of the same shapes and dtypes; or only if a flag is set.

    The flag is a bool scalar on a device, and the host does not read it. Bits are chosen as integers, in a few
    kernels for all tensors: t + 1 * (o - t) is o, though o - t may overflow, and t + 0 * (o - t) is t. As floats a NaN
    in o would stay, for 0 * NaN is NaN.
    """
    for places in by_dtype(tensors):
        ours, theirs = [tensors[i] for i in places], [others[i] for i in places]
        if where is None:
            torch._foreach_copy_(ours, theirs)
            continue
        bits = [bits_of(one) for one in ours]
        changes = torch._foreach_sub([bits_of(one) for one in theirs], bits)
        torch._foreach_mul_(changes, where.to(bits[0]))
        torch._foreach_add_(bits, changes)


def by_dtype(tensors: Sequence[Tensor]) -> Iterable[list[int]]:
    """Group the places of tensors of one dtype: kernels for many tensors take those alone."""
    groups: dict[torch.dtype, list[int]] = {}
    for place, tensor in enumerate(tensors):
        groups.setdefault(tensor.dtype, []).append(place)
    return groups.values()


def sum_of(words: Tensor) -> Tensor:
    """Sum integers into one of at least 32 bits, which wraps. Zeros leave it as it is."""
    return words.sum(dtype=words.dtype if words.element_size() >= 4 else torch.int32)


def nonzero(values: Tensor) -> Tensor:
    """Count the values of one dimension that are not 0, NaN among them: an int64 scalar.

    On a processor NumPy counts integers ten times as fast as torch counts floats. There -0 counts as not 0: an
    optimizer that leaves one outside a mask has multiplied, and may have more to leave.
    """
    if values.device.type != "cpu" or later.is_far(values.device):
        return torch.stack([torch.count_nonzero(piece) for piece in values.split(AT_ONCE)]).sum()
    return torch.tensor(np.count_nonzero(bits_of(values).numpy()))


def on_device(numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Copy integers to a device: int64. The host does not wait for a GPU, as the copy starts from pinned memory."""
    return sent(torch.tensor(numbers, dtype=torch.int64), device)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Copy values to a device. The host does not wait for a GPU, as the copy starts from pinned memory."""
    if device.type == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def places_of(flags: Tensor, count: int) -> Tensor:
    """Places of the True flags (bool [n]), of which there are `count`: int64, rising. No GPU is waited for."""
    return (torch.nonzero_static(flags, size=count) if flags.is_cuda else torch.nonzero(flags)).squeeze(1)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Join tensors of one dimension; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def grouped(parts: Iterable[Counted], most: int) -> Iterator[list[Counted]]:
    """Divide tensors, or what is as long, into groups of consecutive ones with at most `most` entries each.

    A larger one is alone. Example: of the sizes 2 3 9 1 with at most 5 the groups are 2 3, 9 and 1.
    """
    group: list[Counted] = []
    for part in parts:
        if group and sum(one.numel() for one in group) + part.numel() > most:
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def is_row_major(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether entries of this shape lie in memory in their logical order."""
    row_major = (math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return all(size == 1 or ours == theirs for size, ours, theirs in zip(shape, row_major, strides, strict=True))


def strided(index: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Turn row-major indices over `shape` (int64) into offsets in memory.

    Example: shape (2, 3) with strides (1, 2), a matrix that lies column by column. Index 4 is row 1, column 1, and
    lies at 1 * 1 + 1 * 2 = 3. The six indices 0..5 give 0 2 4 1 3 5.

    Dimensions that lie one after the other count as one, which saves a division. Example: shape (2, 3, 4) with strides
    (12, 4, 1) becomes (24,) with stride 1, and the offset is the index itself.
    """
    dims: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if dims and dims[-1][1] == size * stride:
            size, stride = dims.pop()[0] * size, stride
        dims.append((size, stride))
    offsets = torch.zeros_like(index)
    while len(dims) > 1:
        size, stride = dims.pop()
        above = index.div(size, rounding_mode="floor")
        offsets += (index - above * size) * stride
        index = above
    return offsets.add_(index, alpha=dims[0][1])
