"""Requirements of a run on its device: a rule before its start, and for its engine."""

from __future__ import annotations

import torch

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.semi_structured import require_gpu


def require_device(config: RunConfig, device: torch.device) -> None:
    """Raise UserError for a device on which the config cannot be trained."""
    if config.train.semi_structured:
        require_gpu(device)
    if config.train.cuda_graphs and device.type != "cuda":
        raise UserError(f"train.cuda_graphs is on, and the model is on the {device.type}: leave it off")
