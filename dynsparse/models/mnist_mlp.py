"""The multilayer perceptron of the paper's MNIST experiments."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from dynsparse.models.base import MOST_LAYERS, ModelSettings, Width


class MnistMlpSettings(ModelSettings):
    """Linear layers with BatchNorm after each and ReLU between; 784-300-100-10 on MNIST."""

    name: Literal["mnist_mlp"]
    hidden: Annotated[list[Width], Field(max_length=MOST_LAYERS)] = [300, 100]
    """Widths of the hidden layers."""
    batch_norm: bool = True
    """BatchNorm after each linear layer; without it the linear layers have biases."""

    def dense_by_default(self, model: nn.Module) -> Mapping[str, str]:
        """None: all layers are sparse, as in the paper."""
        return {}

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Logits [batch, classes] from images [batch, channels, height, width].

        Linear weights are drawn uniformly within 1/sqrt(fan in), torch's default.
        """
        widths = [math.prod(image_shape), *self.hidden, classes]
        modules: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
            if i > 1:
                modules[f"relu{i - 1}"] = nn.ReLU()
            modules[f"fc{i}"] = nn.Linear(fan_in, fan_out, bias=not self.batch_norm)
            if self.batch_norm:
                modules[f"bn{i}"] = nn.BatchNorm1d(fan_out)
        return nn.Sequential(OrderedDict(modules))

    def pruning_limits(self) -> Mapping[str, float]:
        """The last layer is small: at most 90 % (paper's code)."""
        return {f"fc{len(self.hidden) + 1}.weight": 0.9}
