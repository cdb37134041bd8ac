"""Going back to what some tensors were."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Undo:
    """Remembers the values of tensors that are changed in place."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = list(tensors)
        self._values = [tensor.clone() for tensor in self._tensors]

    @torch.no_grad()
    def remember(self) -> None:
        torch._foreach_copy_(self._values, self._tensors)

    @torch.no_grad()
    def restore(self) -> None:
        torch._foreach_copy_(self._tensors, self._values)
