"""Any classifier of timm (PyTorch Image Models), by its name there."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator
from torch import nn

from dynsparse.models import constructors
from dynsparse.models.base import ModelSettings
from pipelines.common.extras import install_command
from pipelines.common.text import cut, nearest
from pipelines.common.torchvision_ops import import_torchvision

PREFIX = "timm/"
RESERVED = (
    *("cache_dir", "checkpoint_path", "exportable", "features_only", "img_size", "in_chans", "num_classes"),
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "scriptable"),
)
"""Arguments that follow from the data, or give what is no classifier with fresh weights. Nothing is downloaded."""


class TimmSettings(ModelSettings):
    """A classifier of timm with fresh weights; needs the extra `timm`. Its layers are sparse as torchvision's are.

    Models of a fixed image size are built for that of the data.
    """

    name: Annotated[str, Field(pattern=f"^{PREFIX}")]
    """timm/ and the model's name there, such as timm/vit_small_patch16_224."""
    options: constructors.Options = {}
    """Arguments of its constructor, such as {drop_path_rate: 0.1, drop_rate: 0.1}."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if find_spec("timm") is None:
            raise ValueError(f"timm is not installed: install the extra timm ({install_command('timm')})")
        word, known = name.removeprefix(PREFIX), _timm().list_models()
        if word not in known:
            raise ValueError(f"timm has no model '{cut(word)}'{nearest(word, known)}")
        return name

    @model_validator(mode="after")
    def _has_free_options(self) -> TimmSettings:
        constructors.require_known(self.name, self.options, RESERVED)
        return self

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Logits [batch, classes] from images [batch, channels, height, width]. UserError if it cannot take such."""
        channels, height, width = image_shape
        word = self.name.removeprefix(PREFIX)
        make = partial(_timm().create_model, word, pretrained=False, num_classes=classes, in_chans=channels)

        def of_this_size(**options: Any) -> nn.Module:
            try:
                model: nn.Module = make(img_size=(height, width), **options)
            except TypeError as error:
                if "'img_size'" not in str(error):
                    raise
                model = make(**options)
            return model

        return constructors.build(self.name, of_this_size, self.options, image_shape, classes)


def _timm() -> Any:
    # Imported when needed: it takes seconds and is optional.
    import_torchvision()
    import timm

    return timm
