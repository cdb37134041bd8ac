"""The registry of models. To add one: its file and its place in the union below."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dynsparse.models.base import ModelSettings
from dynsparse.models.mnist_mlp import MnistMlpSettings
from dynsparse.models.small_cnn import SmallCnnSettings

AnyModel = Annotated[MnistMlpSettings | SmallCnnSettings, Field(discriminator="name")]

__all__ = ["AnyModel", "ModelSettings"]
