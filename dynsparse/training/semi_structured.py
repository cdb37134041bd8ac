"""Layers that train by 2:4 kernels: `train.semi_structured`. All ranks run the same ones."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from dynsparse.distributed import sync
from dynsparse.errors import UserError
from dynsparse.sparse_kernels.choosing import Chosen, Timer, adopt_layers, choose, cuda_seconds
from dynsparse.sparse_kernels.operands import OnGpu, Operand

log = logging.getLogger(__name__)


def require_gpu(device: torch.device) -> None:
    """Raise UserError for a device without kernels for 2:4."""
    if device.type != "cuda":
        raise UserError(f"train.semi_structured is on, and the model is on the {device.type}: leave it off or use GPUs")
    if (found := torch.cuda.get_device_capability(device)) < (8, 0):
        raise UserError(
            f"train.semi_structured is on, and {device} has compute capability {found[0]}.{found[1]}, where 8.0 is "
            f"needed: leave it off"
        )


def adopt_faster(
    model: nn.Module,
    images: Tensor,
    autocast: AbstractContextManager[object],
    operand: type[Operand] = OnGpu,
    timer: Timer = cuda_seconds,
) -> Chosen:
    """Let layers train by 2:4 kernels where rank 0 measures that they are faster so; all ranks call it together."""

    def decide() -> Chosen:
        with autocast:
            return choose(model, images, operand, timer, training=True)

    chosen = sync.from_rank_0(decide)
    adopt_layers(model, chosen.sparse, operand)
    log.info("train.semi_structured: %s", chosen)
    return chosen
