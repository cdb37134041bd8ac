"""Confusion matrices: how many samples of each class an evaluation takes for which, over all ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynsparse.distributed import sync
from dynsparse.errors import UserError

MOST_CLASSES = 4000
"""Classes of the largest matrix: it takes 128 MB on each rank."""


def require_classes(classes: int) -> None:
    """Raise UserError for more classes than a matrix can have."""
    if classes > MOST_CLASSES:
        raise UserError(f"--confusion: the data have {classes:,} classes; a matrix has at most {MOST_CLASSES:,}")


@dataclass(frozen=True)
class Confusion:
    """Counts int64 [true class, class with the largest logit]."""

    counts: Tensor

    @classmethod
    def empty(cls, classes: int, device: torch.device) -> Confusion:
        """Return a matrix of zeros. UserError for more classes than it can have."""
        require_classes(classes)
        return cls(torch.zeros(classes, classes, dtype=torch.int64, device=device))

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits [batch, classes] and labels [batch]. Of equal logits the one of top-1 counts."""
        classes = len(self.counts)
        places = labels * classes + logits.topk(1, dim=1).indices[:, 0]
        self.counts.view(-1).scatter_add_(0, places, torch.ones_like(places))  # The host waits for no GPU.

    def summed(self) -> Confusion:
        """Return the matrix of all ranks together, on the CPU. A collective."""
        return Confusion(sync.sum_(self.counts.clone()).cpu())

    @property
    def samples(self) -> list[int]:
        """Samples of each class."""
        found: list[int] = self.counts.sum(1).tolist()
        return found

    @property
    def accuracies(self) -> list[float | None]:
        """Percent of each class's samples that are taken for it. None for a class without any."""
        right: list[int] = self.counts.diagonal().tolist()
        return [100 * hit / count if count else None for hit, count in zip(right, self.samples, strict=True)]
