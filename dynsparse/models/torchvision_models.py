"""Any classifier of torchvision, by its name there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_parameter_registration_hook

from dynsparse.errors import UserError
from dynsparse.models.base import ModelSettings
from pipelines.common.text import cut, nearest
from pipelines.common.torchvision_ops import import_torchvision

PREFIX = "torchvision/"


class TorchvisionSettings(ModelSettings):
    """A classifier of torchvision with fresh weights; all of its convolutions, linear and attention layers are sparse.

    nn.MultiheadAttention holds query, key and value in one weight, which is one layer here.
    """

    name: Annotated[str, Field(pattern=f"^{PREFIX}")]
    """torchvision/ and the model's name there, such as torchvision/resnet18."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        known = names()
        if name not in known:
            word, words = name.removeprefix(PREFIX), [one.removeprefix(PREFIX) for one in known]
            raise ValueError(f"torchvision has no classifier '{cut(word)}'{nearest(word, words)}")
        return name

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Logits [batch, classes] from images [batch, 3, height, width]. UserError if it cannot take such images."""
        channels, height, width = image_shape
        if channels != 3:
            raise UserError(
                f"model.name is {self.name} and the images have {channels} channels; torchvision's models take 3: "
                "choose data in colour, or another model"
            )
        word = self.name.removeprefix(PREFIX)
        models, options = _torchvision_models(), _options(word, height, width)
        try:
            with _without_weights() if torch.get_default_device().type == "meta" else nullcontext():
                model: nn.Module = models.get_model(word, weights=None, num_classes=classes, **options)
            _try_forward(model, image_shape)
        except (AssertionError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".!")
            raise UserError(
                f"model.name is {self.name}, which cannot take images of {height}x{width} ({reason}); "
                "choose another image size or model"
            ) from error
        return model


def names() -> list[str]:
    """Names that a config can have, such as torchvision/resnet18."""
    models = _torchvision_models()
    return [f"{PREFIX}{word}" for word in models.list_models(module=models)]


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


@contextmanager
def _without_weights() -> Iterator[None]:
    """Make parameters on the meta device and other tensors on the CPU: RegNet's constructor computes its widths."""

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type] # torch's forgets results
    try:
        with torch.device("cpu"):
            yield
    finally:
        hook.remove()


def _try_forward(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Compute shapes alone, on the meta device. Images of a wrong size are a ValueError now, not in training."""
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors}
    image = torch.empty(1, *image_shape, device="meta")
    try:
        with torch.no_grad():
            functional_call(model.eval(), shapes, (image,))
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    model.train()
