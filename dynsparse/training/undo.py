"""A way back for tensors that are changed in place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dynsparse.masks.tensors import by_dtype, copy_


class Undo:
    """Remembers the values of tensors that are changed in place."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = list(tensors)
        self._values = [tensor.clone() for tensor in self._tensors]

    @torch.no_grad()
    def remember(self) -> None:
        """Take the values of now."""
        for places in by_dtype(self._tensors):
            torch._foreach_copy_([self._values[i] for i in places], [self._tensors[i] for i in places])

    def restore(self, where: Tensor | None = None) -> None:
        """Give the tensors the values that were remembered; or where a flag on the device says so."""
        copy_(self._tensors, self._values, where)
