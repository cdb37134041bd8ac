"""Distribution that weights are drawn from before training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynsparse.masks.granularity import LayerSpec


def initial_weights(spec: LayerSpec, units: int, generator: torch.Generator) -> Tensor:
    """Draw float32 [units, unit size] on the CPU, as the paper's networks and torchvision's ResNets are initialised.

    Convolutions (out, in, k, k): normal, std sqrt(2 / (k k out)) (He et al. 2015, fan out). Other layers: uniform
    within 1 / sqrt(fan in). The distribution depends on the layer's shape alone, so that it needs no state.
    """
    drawn = torch.empty(units, spec.unit_size)
    if spec.kind == "conv":
        outputs = spec.shape[0 if spec.outputs_first else 1]
        return drawn.normal_(0, math.sqrt(2 / (outputs * math.prod(spec.shape[2:]))), generator=generator)
    bound = 1 / math.sqrt(spec.shape[1])
    return drawn.uniform_(-bound, bound, generator=generator)
