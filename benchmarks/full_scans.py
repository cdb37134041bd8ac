"""One reallocation with dense masks and scans over whole layers. `benchmarks.reallocation` compares with it.

`with_numpy` does what the code behind the paper does (Mostafa & Wang 2019): a mask is a float32 tensor of the weight's
shape. One loop over the layers drops. A second lists all free positions, takes away those just dropped, puts the
candidates in a random order and takes the first. `in_torch` computes the same with bool masks and torch alone, and
needs no difference of sets, for it remembers what was free. Both are written plainly, for weights as single units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Positions = NDArray[np.int64]


@dataclass
class DenseLayer:
    """A layer, all tensors of the weight's shape and contiguous."""

    weight: Tensor
    mask: Tensor
    """1 or True where active: float32 or bool."""
    momentum: Tensor

    def copy(self, mask: torch.dtype) -> DenseLayer:
        return DenseLayer(self.weight.clone(), self.mask.to(mask, copy=True), self.momentum.clone())

    def take_over(self, other: DenseLayer) -> None:
        """Become equal to `other`, whatever the type of its mask."""
        self.weight.copy_(other.weight)
        self.mask.copy_(other.mask)
        self.momentum.copy_(other.momentum)


@torch.no_grad()
def with_numpy(layers: Sequence[DenseLayer], threshold: float, draw: np.random.Generator, **difference: Any) -> None:
    """Drop all active weights below `threshold` and grow as many elsewhere; `difference` goes to np.setdiff1d."""
    dropped: list[Positions] = []
    kept = []
    for layer in layers:
        gone = (layer.mask == 1) & (layer.weight.abs() < threshold)
        layer.mask[gone] = 0
        dropped.append(np.flatnonzero(gone.numpy()))
        kept.append(int(layer.mask.count_nonzero()))
    shares = shared_out(sum(map(len, dropped)), kept)
    for layer, gone_here, count in zip(layers, dropped, shares, strict=True):
        free = torch.nonzero(layer.mask.view(-1) == 0).squeeze(1).numpy()
        candidates = np.setdiff1d(free, gone_here, **difference)
        grown = torch.from_numpy(draw.permutation(candidates)[:count])
        layer.mask.view(-1)[grown] = 1
        layer.weight.view(-1)[grown] = 0
        layer.weight *= layer.mask
        layer.momentum *= layer.mask


@torch.no_grad()
def in_torch(layers: Sequence[DenseLayer], threshold: float, draw: torch.Generator) -> None:
    """Do the same with bool masks."""
    was_free, kept, freed = [], [], 0
    for layer in layers:
        was_free.append(~layer.mask)
        active = int(layer.mask.count_nonzero())
        layer.mask &= layer.weight.abs() >= threshold
        kept.append(int(layer.mask.count_nonzero()))
        freed += active - kept[-1]
    for layer, free, count in zip(layers, was_free, shared_out(freed, kept), strict=True):
        candidates = free.view(-1).nonzero().squeeze(1)
        grown = candidates[torch.randperm(len(candidates), generator=draw)[:count]]
        layer.mask.view(-1)[grown] = True
        layer.weight.view(-1)[grown] = 0
        inactive = ~layer.mask
        layer.weight.masked_fill_(inactive, 0)
        layer.momentum.masked_fill_(inactive, 0)


def shared_out(freed: int, kept: Sequence[int]) -> list[int]:
    """Share out `freed` in proportion to what each layer keeps, in whole weights.

    The largest remainders get one more: of 2 freed, layers that keep 2 and 1 get 1.33 and 0.67, so 1 and 1.
    """
    total = sum(kept)
    shares = [freed * count // total for count in kept]
    by_remainder = sorted(range(len(kept)), key=lambda i: -(freed * kept[i] % total))
    for i in by_remainder[: freed - sum(shares)]:
        shares[i] += 1
    return shares
