"""Inference on this machine: the fastest network that computes what a sparse one does."""

from dynsparse.inference.speeding import SpedUp, speed_up
from dynsparse.inference.table import LayerRow, NetworkRow, Table

__all__ = ["LayerRow", "NetworkRow", "SpedUp", "Table", "speed_up"]
