"""The registry of models. To add one: its file and its place in the union below."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from dynsparse.models import timm_models
from dynsparse.models.base import PREFIX, ModelSettings
from dynsparse.models.mnist_mlp import MnistMlpSettings
from dynsparse.models.resnet50 import ResNet50Settings
from dynsparse.models.small_cnn import SmallCnnSettings
from dynsparse.models.timm_models import TimmSettings
from dynsparse.models.torchvision_models import TorchvisionSettings, names
from dynsparse.models.wide_resnet import WideResNetSettings

ANY_OF_TIMM, ANY_OF_TORCHVISION = (f"{prefix}..." for prefix in (timm_models.PREFIX, PREFIX))


def _tag(section: Any) -> str | None:
    """Tag of the member of the union for a section of a config, or its settings. None where it lacks a name."""
    found = section.get("name") if isinstance(section, Mapping) else getattr(section, "name", None)
    if found is None:
        return None
    for prefix in (timm_models.PREFIX, PREFIX):
        if str(found).startswith(prefix):
            return f"{prefix}..."
    return str(found)


AnyModel = Annotated[
    Annotated[WideResNetSettings, Tag("cifar10_WideResNet")]
    | Annotated[ResNet50Settings, Tag("imagenet_resnet50")]
    | Annotated[MnistMlpSettings, Tag("mnist_mlp")]
    | Annotated[SmallCnnSettings, Tag("small_cnn")]
    | Annotated[TorchvisionSettings, Tag(ANY_OF_TORCHVISION)]
    | Annotated[TimmSettings, Tag(ANY_OF_TIMM)],
    Discriminator(_tag),
]


def more_names() -> list[str]:
    """Names that `torchvision/...` stands for, none where it is not installed. It takes a second to import.

    The 1,400 of `timm/...` are not among them: part of any word is part of one of theirs.
    """
    return names() if find_spec("torchvision") is not None else []


__all__ = ["AnyModel", "ModelSettings", "more_names"]
