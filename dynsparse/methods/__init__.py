"""The registry of methods. To add one: its file, its line here, its YAML (docs/adding-a-method.md)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dynsparse.methods.acdc import AcdcSettings
from dynsparse.methods.base import Aim, LayerChange, Method, MethodSettings
from dynsparse.methods.chase import ChaseSettings
from dynsparse.methods.chts import ChtsSettings
from dynsparse.methods.clock import Clock
from dynsparse.methods.deepr import DeepRSettings
from dynsparse.methods.dense import DenseSettings
from dynsparse.methods.dsr import DsrSettings
from dynsparse.methods.gmp import GmpSettings
from dynsparse.methods.granet import GranetSettings
from dynsparse.methods.mest import MestSettings
from dynsparse.methods.nm import NmSettings
from dynsparse.methods.pruning import PruningSettings
from dynsparse.methods.rigl import RiglSettings
from dynsparse.methods.set import SetSettings
from dynsparse.methods.sparse_momentum import SparseMomentumSettings
from dynsparse.methods.srigl import SriglSettings
from dynsparse.methods.static import StaticSettings
from dynsparse.methods.tied import TiedSettings
from dynsparse.methods.topkast import TopkastSettings

AnyMethod = Annotated[
    AcdcSettings
    | ChaseSettings
    | ChtsSettings
    | DeepRSettings
    | DenseSettings
    | DsrSettings
    | GmpSettings
    | GranetSettings
    | MestSettings
    | NmSettings
    | PruningSettings
    | RiglSettings
    | SetSettings
    | SparseMomentumSettings
    | SriglSettings
    | StaticSettings
    | TiedSettings
    | TopkastSettings,
    Field(discriminator="name"),
]

__all__ = ["Aim", "AnyMethod", "Clock", "LayerChange", "Method", "MethodSettings"]
