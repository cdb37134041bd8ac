"""Parts of a line of metrics.jsonl, checked: files are cut, mixed up and edited by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float64]


class BadLineError(ValueError):
    """A line that is not what training writes."""


def weights_of(layer: Mapping[str, Any]) -> int:
    """Of a layer, from its active ones and its sparsity; 0 if that does not tell."""
    density = 1 - number(layer["sparsity"])
    return round(number(layer["active"]) / density) if density > 0 else 0


def row(layers: Mapping[str, Any], key: str, *, missing: bool = False) -> Row:
    return np.array([number(layer.get(key) if missing else layer[key]) for layer in layers.values()])


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        str(key): number(value)
        for key, value in line.items()
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }


def number(value: Any) -> float:
    """NaN for null."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadLineError(f"{value!r} is no number")
    return float(value)


def whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadLineError(f"{value!r} is no whole number")
    return value
