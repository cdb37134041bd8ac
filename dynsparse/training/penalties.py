"""Penalties on the active weights of the sparse layers, added to the reduced gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynsparse.config.sections import PenaltySettings
from dynsparse.masks import SparseLayer
from dynsparse.masks.tying import TiedLayer

_EPSILON = 1e-12  # Under the root, so that the norm of a slice of zeros has a gradient, which is 0.


@torch.no_grad()
def add_gradients(settings: PenaltySettings, layers: Sequence[SparseLayer | TiedLayer]) -> None:
    """Add `l1` times the gradient of the penalty to each layer's gradient, of the bank where weights are tied.

    The penalty is the sum of |w|. With `group_lasso` it is, in convolutions, the sum over kernel slices of
    sqrt(sum of w^2 + 1e-12). Inactive weights are 0, and so is their gradient. The gradients must be reduced over the
    ranks already, for the penalty is the same on all of them.
    """
    if settings.l1 == 0:
        return
    for layer in layers:
        gradient = layer.weight.grad
        if gradient is not None:
            grouped = settings.group_lasso and layer.spec.kind == "conv"
            direction = _group_direction(layer) if grouped else layer.weight.sign()
            # Not counted as a write: it adds 0 outside the masks, so a masked gradient need not be masked again.
            gradient.data.add_(direction, alpha=settings.l1)


def _group_direction(layer: SparseLayer | TiedLayer) -> Tensor:
    """The gradient of the sum of the norms of the kernel slices."""
    kernel = tuple(range(layer.weight.dim() - (len(layer.spec.shape) - 2), layer.weight.dim()))
    return layer.weight / (layer.weight.square().sum(kernel, keepdim=True) + _EPSILON).sqrt()
