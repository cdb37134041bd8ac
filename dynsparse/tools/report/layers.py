"""Numbers of the layers in a record of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynsparse.training.run.log_records import number, whole_number

Row = NDArray[np.float64]


def weights_of(layer: Mapping[str, Any]) -> int:
    """Return all weights of a layer, from its active ones and its sparsity; 0 if that does not tell."""
    density = 1 - number(layer["sparsity"])
    return round(number(layer["active"]) / density) if density > 0 else 0


def counts(layers: Mapping[str, Any], key: str) -> Row:
    """Return a count of each layer, float64 [layers]."""
    return np.array([whole_number(layer[key]) for layer in layers.values()], dtype=np.float64)


def shares(layers: Mapping[str, Any], key: str) -> Row:
    """Return a fraction of each layer, float64 [layers]; NaN where it has none."""
    return np.array([number(layer.get(key)) for layer in layers.values()], dtype=np.float64)
