"""The contract of a model: settings that build an ordinary `nn.Module`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from dynsparse.masks.usual import chosen_by_default, usually_dense
from pipelines.common.paths import PathText
from pipelines.common.settings import Settings

Width = Annotated[int, Field(ge=1, le=2**20)]
"""Channels or features of a layer."""
Widening = Annotated[float, Field(gt=0, le=1000)]
"""A factor on the widths of a network."""
PREFIX = "torchvision/"
"""Beginning of the names of torchvision's networks, and of the weights that it publishes."""
MOST_LAYERS = 1000
"""Most layers of a network that a config describes by a list or a depth."""


class ModelSettings(Settings):
    """Base of each model's settings; `name` selects the model in a config."""

    name: str
    weights: Annotated[PathText, Field(min_length=1)] | None = None
    """Trained weights to begin with: a run's folder (its best), a checkpoint, a state_dict in a file of torch.save or
    safetensors, or torchvision/VERSION. A head of another size starts anew."""

    @field_validator("weights")
    @classmethod
    def _can_be_had(cls, weights: str | None, info: ValidationInfo) -> str | None:
        if weights is not None and weights.startswith(PREFIX):
            raise ValueError(
                f"is {weights}, and torchvision publishes weights of its own networks; set model.name to one, such as "
                f"torchvision/resnet50, or name a file (./{weights})"
            )
        return weights

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Make the network for images (channels, height, width). It gives `classes` logits.

        It is initialised from torch's global generator, so that one seed gives one network.
        """
        raise NotImplementedError

    def pruning_limits(self) -> Mapping[str, float]:
        """Layers that pruning must spare, with the most sparsity for each, unless `method.max_sparsity` is set."""
        return {}

    def dense_by_default(self, model: nn.Module) -> Mapping[str, str]:
        """Layers' weights that stay dense unless `sparsity.include` says otherwise, with the reason for each."""
        return usually_dense(model)

    def sparse_by_default(self, model: nn.Module) -> Sequence[str] | None:
        """Names of the weights to make sparse unless `sparsity.include` says otherwise; None: all layers'."""
        return chosen_by_default(model, self.dense_by_default(model))
