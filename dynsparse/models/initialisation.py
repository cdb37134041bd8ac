"""Initial distributions of the paper's convolutional networks."""

from __future__ import annotations

import math

from torch import nn


def init_convolutions(model: nn.Module) -> None:
    """Draw each convolution [out, in, kh, kw] from a normal distribution of std sqrt(2 / (kh * kw * out)).

    He et al. 2015, by fan out; torchvision's ResNets do the same. The paper's other distributions are torch's own
    defaults: linear weights uniform within 1/sqrt(fan in), BatchNorm weight 1 and bias 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels)))
