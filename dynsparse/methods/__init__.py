"""The registry of methods. To add one: its file, its line here, its YAML (docs/adding-a-method.md)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dynsparse.methods.base import LayerChange, Method, MethodSettings
from dynsparse.methods.clock import Clock
from dynsparse.methods.deepr import DeepRSettings
from dynsparse.methods.dense import DenseSettings
from dynsparse.methods.dsr import DsrSettings
from dynsparse.methods.pruning import PruningSettings
from dynsparse.methods.rigl import RiglSettings
from dynsparse.methods.set import SetSettings
from dynsparse.methods.sparse_momentum import SparseMomentumSettings
from dynsparse.methods.static import StaticSettings
from dynsparse.methods.tied import TiedSettings

AnyMethod = Annotated[
    DeepRSettings
    | DenseSettings
    | DsrSettings
    | PruningSettings
    | RiglSettings
    | SetSettings
    | SparseMomentumSettings
    | StaticSettings
    | TiedSettings,
    Field(discriminator="name"),
]

__all__ = ["AnyMethod", "Clock", "LayerChange", "Method", "MethodSettings"]
