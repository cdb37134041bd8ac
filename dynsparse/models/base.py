"""The contract of a model: settings that build an ordinary `nn.Module`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field
from torch import nn

from pipelines.common.settings import Settings

Width = Annotated[int, Field(ge=1, le=2**20)]
"""Channels or features of a layer."""
Widening = Annotated[float, Field(gt=0, le=1000)]
"""A factor on the widths of a network."""
MOST_LAYERS = 1000
"""Most layers of a network that a config describes by a list or a depth."""


class ModelSettings(Settings):
    """Base of each model's settings; `name` selects the model in a config."""

    name: str

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Make the network for images (channels, height, width). It gives `classes` logits.

        It is initialised from torch's global generator, so that one seed gives one network.
        """
        raise NotImplementedError

    def pruning_limits(self) -> Mapping[str, float]:
        """Layers that pruning must spare, with the most sparsity for each, unless `method.max_sparsity` is set."""
        return {}

    def sparse_by_default(self, model: nn.Module) -> Sequence[str] | None:
        """Names of the weights to make sparse unless `sparsity.include` says otherwise; None: all."""
        return None
