"""Stochastic depth (Huang et al. 2016): in training, residual branches are left out at random, for each sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

Probability = Annotated[float, Field(ge=0, lt=1)]


class DropPath(nn.Module):
    """Residual branch that is 0 with probability `p` for a sample in training, and 1 / (1 - p) times as large else."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, branch: Tensor) -> Tensor:
        """Map [batch, ...] to the same shape."""
        if not self.training or self.p == 0:
            return branch
        keep = torch.empty((len(branch),) + (1,) * (branch.dim() - 1), dtype=branch.dtype, device=branch.device)
        return branch * keep.bernoulli_(1 - self.p).div_(1 - self.p)

    def extra_repr(self) -> str:
        """Return the probability, for the text of a module."""
        return f"p={self.p:g}"


def rising(blocks: int, last: float) -> Iterator[float]:
    """Yield the probabilities of the blocks: from 0 at the first, on a line, to `last` at the last (paper)."""
    return (last * i / max(1, blocks - 1) for i in range(blocks))
