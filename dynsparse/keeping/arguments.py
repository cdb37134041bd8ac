"""Text of arguments that is the same in every process, so that ranks can compare theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Fraction, PurePath, torch.dtype, torch.device)


def canonical(value: object) -> str:
    """Return a text of plain data, and of what is made of it. All else has none: it is left out, as "...".

    An object's own text may hold its address, and a set's order depends on the process.
    """
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, np.generic):
        return canonical(value.item())
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Mapping):
        return _joined(sorted(f"{canonical(key)}: {canonical(one)}" for key, one in value.items()))
    if isinstance(value, Set):
        return _joined(sorted(canonical(one) for one in value))
    if isinstance(value, Sequence):
        return _joined([canonical(one) for one in value])
    if (parts := _parts_of(value)) is not None:
        return type(value).__name__ + canonical(parts)
    return "..."


def _parts_of(value: Any) -> Mapping[str, object] | None:
    """Fields of settings or a dataclass, by name."""
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    return None


def _joined(texts: Sequence[str]) -> str:
    return f"[{', '.join(texts)}]"
