"""Parts of what a run writes, checked: files are cut, mixed up and edited by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float64]

#: Beyond, a number tells nothing, and sums and axes overflow.
LARGEST = 1e100
#: Beyond, float64 does not tell neighbours apart.
MOST = 2**53


class BadLineError(ValueError):
    """A line that is not what training writes."""


def weights_of(layer: Mapping[str, Any]) -> int:
    """Of a layer, from its active ones and its sparsity; 0 if that does not tell."""
    density = 1 - number(layer["sparsity"])
    return round(number(layer["active"]) / density) if density > 0 else 0


def counts(layers: Mapping[str, Any], key: str) -> Row:
    """Of each layer."""
    return np.array([whole_number(layer[key]) for layer in layers.values()], dtype=np.float64)


def shares(layers: Mapping[str, Any], key: str) -> Row:
    """Of each layer, NaN where it has none."""
    return np.array([number(layer.get(key)) for layer in layers.values()], dtype=np.float64)


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        str(key): number(value)
        for key, value in line.items()
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }


def number(value: Any) -> float:
    """NaN for null, and for what is beyond LARGEST."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadLineError(f"{value!r} is no number")
    try:
        found = float(value)
    except OverflowError:
        raise BadLineError("an integer of hundreds of digits") from None
    return found if abs(found) <= LARGEST else float("nan")


def whole_number(value: Any) -> int:
    """A count: 0 to MOST."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
        raise BadLineError(f"{value!r} is no count")
    return value


def word(value: Any) -> str:
    if not isinstance(value, str):
        raise BadLineError(f"{value!r} is no text")
    return value
