"""The registry of methods. To add one: its file, its line here, its YAML (docs/adding-a-method.md)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dynsparse.methods.base import Clock, LayerChange, Method, MethodSettings
from dynsparse.methods.dense import DenseSettings
from dynsparse.methods.dsr import DsrSettings
from dynsparse.methods.static import StaticSettings

AnyMethod = Annotated[DenseSettings | DsrSettings | StaticSettings, Field(discriminator="name")]

__all__ = ["AnyMethod", "Clock", "LayerChange", "Method", "MethodSettings"]
