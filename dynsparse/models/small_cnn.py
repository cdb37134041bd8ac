"""A small convolutional network: the quickest way to try sparse convolutions."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from dynsparse.models.base import MOST_LAYERS, ModelSettings, Width


class SmallCnnSettings(ModelSettings):
    """3x3 convolutions with BatchNorm and ReLU, each but the first halving the size; mean; a linear layer."""

    name: Literal["small_cnn"]
    channels: Annotated[list[Width], Field(min_length=1, max_length=MOST_LAYERS)] = [16, 32, 64]
    """Output channels of the convolutions."""

    def dense_by_default(self, model: nn.Module) -> Mapping[str, str]:
        """None: all layers are sparse."""
        return {}

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Logits [batch, classes] from images [batch, channels, height, width], of any height and width."""
        widths = [image_shape[0], *self.channels]
        modules: dict[str, nn.Module] = {}
        for i, (c_in, c_out) in enumerate(itertools.pairwise(widths), start=1):
            modules[f"conv{i}"] = nn.Conv2d(c_in, c_out, 3, stride=1 if i == 1 else 2, padding=1, bias=False)
            modules[f"bn{i}"] = nn.BatchNorm2d(c_out)
            modules[f"relu{i}"] = nn.ReLU()
        modules |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(widths[-1], classes)}
        return nn.Sequential(OrderedDict(modules))
