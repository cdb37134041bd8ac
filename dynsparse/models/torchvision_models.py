"""Any classifier of torchvision, by its name there."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import nn

from dynsparse.errors import UserError
from dynsparse.models import constructors
from dynsparse.models.base import PREFIX, ModelSettings
from pipelines.common.text import cut, nearest
from pipelines.common.torchvision_ops import import_torchvision

RESERVED = ("aux_logits", "image_size", "init_weights", "input_size", "num_classes", "progress", "weights")
"""Arguments that follow from the data and the model's name."""


_TRANSFORMED = (f"{PREFIX}googlenet", f"{PREFIX}inception_v3")
"""Networks whose published weights come from TensorFlow. They normalise their input anew where they are told so."""


class TorchvisionSettings(ModelSettings):
    """A classifier of torchvision; its convolutions, linear and attention layers are sparse.

    Query, key and value are layers of their own, also where one weight holds all three. Dense by default are the
    convolution that takes the image, the classification head, depthwise convolutions and layers with a fan-in below
    32; in ResNets nothing is, as in the papers. `sparsity.include` says otherwise.
    """

    name: Annotated[str, Field(pattern=f"^{PREFIX}")]
    """torchvision/ and the model's name there, such as torchvision/resnet18."""
    options: constructors.Options = {}
    """Arguments of its constructor, such as {zero_init_residual: true} or {stochastic_depth_prob: 0.1}."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        known = names()
        if name not in known:
            word, words = name.removeprefix(PREFIX), [one.removeprefix(PREFIX) for one in known]
            raise ValueError(f"torchvision has no classifier '{cut(word)}'{nearest(word, words)}")
        return name

    def dense_by_default(self, model: nn.Module) -> Mapping[str, str]:
        """Reasons for layers to stay dense. ResNets have none: published figures count all of their layers."""
        return {} if type(model).__module__ == "torchvision.models.resnet" else super().dense_by_default(model)

    @field_validator("weights")
    @classmethod
    def _can_be_had(cls, weights: str | None, info: ValidationInfo) -> str | None:
        name, version = info.data.get("name"), (weights or "").removeprefix(PREFIX)
        if name is None or weights is None or not weights.startswith(PREFIX):
            return weights
        if version not in (known := published(name)):
            raise ValueError(
                f"is {cut(weights)}; of {name} torchvision has no '{cut(version)}'{nearest(version, known)}"
            )
        return weights

    @model_validator(mode="after")
    def _has_free_options(self) -> TorchvisionSettings:
        constructors.require_known(self.name, self.options, RESERVED)
        return self

    @model_validator(mode="after")
    def _published_input_is_said(self) -> TorchvisionSettings:
        """Raise ValueError for published weights that were trained on images normalised otherwise, unless it is said.

        A run that goes on from this one has to say it too, so it stands in the config.
        """
        is_published = (self.weights or "").startswith(PREFIX)
        if is_published and self.name in _TRANSFORMED and "transform_input" not in self.options:
            raise ValueError(
                f"weights are {self.weights}, and those of {self.name} were trained on images normalised otherwise: "
                f"set model.options={{transform_input: true}}, also for what starts from this run"
            )
        return self

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Logits [batch, classes] from images [batch, 3, height, width]. UserError if it cannot take such images."""
        channels, height, width = image_shape
        if channels != 3:
            raise UserError(
                f"model.name is {self.name} and the images have {channels} channels; torchvision's models take 3: "
                "choose data in colour, or another model"
            )
        word = self.name.removeprefix(PREFIX)
        needed = {"weights": None, "num_classes": classes, **_options(word, height, width)}
        make = partial(_torchvision_models().get_model, word, **needed)
        return constructors.build(self.name, make, self.options, image_shape, classes)


def names() -> list[str]:
    """Names that a config can have, such as torchvision/resnet18."""
    models = _torchvision_models()
    return [f"{PREFIX}{word}" for word in models.list_models(module=models)]


def published(name: str) -> dict[str, Any]:
    """Return the weights that torchvision publishes of a network, by version."""
    return dict(_torchvision_models().get_model_weights(name.removeprefix(PREFIX)).__members__)


def _torchvision_models() -> Any:
    # Imported when needed: it takes seconds, and other models do without.
    import_torchvision()
    import torchvision

    return torchvision.models


def _options(word: str, height: int, width: int) -> dict[str, Any]:
    """Arguments that a family needs in order to give logits alone and to take images of this size."""
    if word in ("inception_v3", "googlenet"):
        # Auxiliary heads would give more than one output. The initial weights are the published ones. Without
        # `init_weights` torchvision warns of a coming change.
        return {"aux_logits": False, "init_weights": True}
    if word.startswith("vit_"):
        return {"image_size": height}
    if word.startswith("maxvit_"):
        return {"input_size": (height, width)}
    return {}
