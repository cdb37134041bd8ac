"""Sparse training of convolutional networks: see README.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dynsparse.errors import DesyncError, UserError
    from dynsparse.inference import speed_up
    from dynsparse.masks import MaskSet
    from dynsparse.masks.usual import usually_dense
    from dynsparse.methods import Method
    from dynsparse.reallocation import ReallocationReport
    from dynsparse.sparse_kernels import semi_structured
    from dynsparse.sparse_training import SparseTraining

_HOMES = {
    "DesyncError": "dynsparse.errors",
    "MaskSet": "dynsparse.masks",
    "Method": "dynsparse.methods",
    "ReallocationReport": "dynsparse.reallocation",
    "SparseTraining": "dynsparse.sparse_training",
    "UserError": "dynsparse.errors",
    "semi_structured": "dynsparse.sparse_kernels",
    "speed_up": "dynsparse.inference",
    "usually_dense": "dynsparse.masks.usual",
}
"""The public names, by the modules that hold them. They need torch, numpy and pydantic alone."""

__all__ = [
    "DesyncError",
    "MaskSet",
    "Method",
    "ReallocationReport",
    "SparseTraining",
    "UserError",
    "__version__",
    "semi_structured",
    "speed_up",
    "usually_dense",
]


def __getattr__(name: str) -> Any:
    """Public names on first use: importing the package for its version must not import torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dynsparse' has no attribute '{name}'")
