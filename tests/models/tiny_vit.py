"""torchvision's VisionTransformer, two blocks of width 32, under a name in torchvision's registry."""

from __future__ import annotations

from typing import Any

from torch import nn

from pipelines.common.torchvision_ops import import_torchvision

import_torchvision()
from torchvision.models import VisionTransformer, list_models  # noqa: E402
from torchvision.models._api import register_model  # noqa: E402

NAME = "torchvision/vit_tiny"
SHAPE = (3, 8, 8)


def vit_tiny(*, weights: None = None, num_classes: int = 4, image_size: int = 8, **options: Any) -> nn.Module:
    """Patches of 4x4, 2 blocks of 2 heads."""
    return VisionTransformer(image_size, 4, 2, 2, 32, 64, num_classes=num_classes, **options)


vit_tiny.__module__ = "torchvision.models.tiny"  # `list_models` asks for those of torchvision.models.
if "vit_tiny" not in list_models():  # Another import of this file may have done it.
    register_model("vit_tiny")(vit_tiny)


def attention(block: int) -> str:
    """Name of a block's attention."""
    return f"encoder.layers.encoder_layer_{block}.self_attention"


LAYERS = [
    f"encoder.layers.encoder_layer_{block}.{name}"
    for block in (0, 1)
    for name in (
        *(f"self_attention.in_proj_weight.{part}" for part in "qkv"),
        "self_attention.out_proj.weight",
        "mlp.0.weight",
        "mlp.3.weight",
    )
]
"""Sparse layers by default."""
