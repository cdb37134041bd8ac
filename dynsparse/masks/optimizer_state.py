"""Optimizer state beside the masks: cleared where weights go, stored for active weights only."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, optim

from dynsparse.masks.layer import SparseLayer


def moments(optimizer: optim.Optimizer, layer: SparseLayer) -> Iterator[tuple[str, Tensor]]:
    """The optimizer's tensors that hold one entry a weight (momentum buffer, Adam's moments)."""
    for key, value in optimizer.state.get(layer.weight, {}).items():
        if isinstance(value, Tensor) and value.shape == layer.weight.shape:
            yield key, value


def clear(optimizer: optim.Optimizer, layer: SparseLayer, units: Tensor) -> None:
    """Zero the state at `units` (int64 [k]) that were dropped: they must not move, and may grow again."""
    for _, moment in moments(optimizer, layer):
        layer.zero_(moment, units)
