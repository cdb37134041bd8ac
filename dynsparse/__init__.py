"""Sparse training of convolutional networks: see README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dynsparse.sparse_training import SparseTraining

__all__ = ["SparseTraining", "__version__"]


def __getattr__(name: str) -> Any:
    """`SparseTraining` on first use: importing the package for its version must not import torch."""
    if name == "SparseTraining":
        from dynsparse.sparse_training import SparseTraining

        return SparseTraining
    raise AttributeError(f"module 'dynsparse' has no attribute '{name}'")
