"""Clipping of the gradients that the optimizer will use: reduced over the ranks, unscaled and masked."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dynsparse.config.sections import ClipSettings

_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm too.


@torch.no_grad()
def clip(settings: ClipSettings, parameters: Iterable[nn.Parameter]) -> Tensor | None:
    """Clip gradients in place, by norm and then by value. Returns their norm before that; None if not asked to.

    The norm is a scalar on the device, and the host does not wait for it.
    Each rank holds the same gradients, so each finds the same norm. Weights outside the masks have a gradient of 0 and
    add nothing to it. It is the norm of float32 gradients over all parameters together.
    """
    if not settings.is_on:
        return None
    # Not counted as a write: 0 stays 0, so a masked gradient need not be masked again.
    gradients = [parameter.grad.data for parameter in parameters if parameter.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if settings.norm is not None:
        _scale(gradients, (settings.norm / (norm + _EPSILON)).clamp(max=1.0))
    if settings.value is not None:
        torch._foreach_clamp_min_(gradients, -settings.value)
        torch._foreach_clamp_max_(gradients, settings.value)
    return norm


def _scale(gradients: list[Tensor], factor: Tensor) -> None:
    """Multiply by a factor on the device, which the host need not know."""
    torch._foreach_mul_(gradients, factor)
