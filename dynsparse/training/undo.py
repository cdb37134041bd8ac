"""A way back for tensors that are changed in place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dynsparse.masks.tensors import bits_of


class Undo:
    """Remembers the values of tensors that are changed in place."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = list(tensors)
        self._values = [tensor.clone() for tensor in self._tensors]

    @torch.no_grad()
    def remember(self) -> None:
        """Take the values of now."""
        for places in _alike(self._tensors):
            torch._foreach_copy_([self._values[i] for i in places], [self._tensors[i] for i in places])

    def restore(self, where: Tensor | None = None) -> None:
        """Give the tensors the values that were remembered; or where a flag on the device says so."""
        copy_(self._tensors, self._values, where)


@torch.no_grad()
def copy_(tensors: Sequence[Tensor], others: Sequence[Tensor], where: Tensor | None = None) -> None:
    """Copy `others` into `tensors`, one into each, of the same shapes and dtypes; or only if a flag is set.

    The flag is a bool scalar on their device, and the host does not read it. Bits are chosen as integers, in a few
    kernels for all tensors: t + 1 * (o - t) is o, though o - t may overflow, and t + 0 * (o - t) is t. As floats a NaN
    in o would stay, for 0 * NaN is NaN.
    """
    for places in _alike(tensors):
        ours, theirs = [tensors[i] for i in places], [others[i] for i in places]
        if where is None:
            torch._foreach_copy_(ours, theirs)
            continue
        bits = [bits_of(one) for one in ours]
        changes = torch._foreach_sub([bits_of(one) for one in theirs], bits)
        torch._foreach_mul_(changes, where.to(bits[0].dtype))
        torch._foreach_add_(bits, changes)


def _alike(tensors: Sequence[Tensor]) -> Iterable[list[int]]:
    """Group the places of tensors of one dtype: kernels for many tensors take those alone."""
    groups: dict[torch.dtype, list[int]] = {}
    for place, tensor in enumerate(tensors):
        groups.setdefault(tensor.dtype, []).append(place)
    return groups.values()
