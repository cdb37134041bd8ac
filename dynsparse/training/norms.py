"""Norms of the gradients of an epoch, kept where they are computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Norms(NamedTuple):
    """Norms before clipping, of the epoch so far; None for all where nothing has been clipped in it."""

    latest: float | None = None
    largest: float | None = None
    mean: float | None = None


class GradientNorms:
    """Sums over an epoch's steps, on the device: to add a norm, the host need not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        """Latest, largest and total norm, and steps."""
        self._is_empty = True

    def add(self, norm: Tensor, unless: Tensor | None = None) -> None:
        """Take in the norm of a step, a scalar on the device; not where a flag on the device says so."""
        self._is_empty = False
        latest, (_, largest, total, steps) = norm.double(), self._sums
        sums = torch.stack([latest, torch.maximum(largest, latest), total + latest, steps + 1])
        self._sums.copy_(sums if unless is None else torch.where(unless, self._sums, sums))

    def begin_epoch(self) -> None:
        """Forget the epoch before."""
        self._sums.zero_()
        self._is_empty = True

    def read(self) -> Norms:
        """Return what they came to. Waits for the device, unless nothing has been clipped."""
        if self._is_empty:
            return Norms()
        latest, largest, total, steps = self._sums.tolist()
        return Norms(latest, largest, total / steps) if steps else Norms()

    def state(self) -> Tensor:
        """Return the sums for a checkpoint: float64 [4], the same on every rank."""
        return self._sums.cpu().clone()

    def load(self, state: Tensor | None) -> None:
        """Load sums of a checkpoint. Those of older versions have none."""
        self.begin_epoch()
        if state is not None:
            self._sums.copy_(state)
            self._is_empty = not bool(state[3])
