"""Outputs of layers that no active weight leads to: neurons and filters whose value is a constant."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor

from dynsparse.masks.layer import SparseLayer


def dead_outputs(layers: Iterable[SparseLayer]) -> dict[str, int]:
    """Return how many outputs of each layer have no active weight. Linear in the active units, one copy to the host.

    Example: of a linear layer [3, 4] with the active units 0, 1 and 8, output 1 has none.
    """
    listed = list(layers)
    counts = [_dead(layer) for layer in listed]
    return dict(zip([layer.name for layer in listed], torch.stack(counts).tolist() if counts else [], strict=True))


def _dead(layer: SparseLayer) -> Tensor:
    """Return the count for one layer, int64 scalar on its device."""
    if layer.is_full:
        return torch.zeros((), dtype=torch.int64, device=layer.device)
    dimension = 0 if layer.spec.outputs_first else 1
    sizes = layer.spec.mask_shape
    of = layer.active // prod(sizes[dimension + 1 :]) % sizes[dimension]
    # A unit that spans all outputs, as a filter of a transposed convolution does, leads to each of them.
    dead = torch.ones(sizes[dimension], dtype=torch.bool, device=of.device)
    return dead.index_fill_(0, of, False).sum()  # A count of each would let the host wait for a GPU.
