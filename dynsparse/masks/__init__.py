"""Masks: the active weights of each layer, and every exact choice about them."""

from dynsparse.masks.candidates import sparse_layers
from dynsparse.masks.granularity import LayerSpec
from dynsparse.masks.layer import SparseLayer
from dynsparse.masks.maskset import MaskSet

__all__ = ["LayerSpec", "MaskSet", "SparseLayer", "sparse_layers"]
