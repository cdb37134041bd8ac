"""Arguments that all ranks are to give alike, compared by a text that is the same in every process."""

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

from dynsparse.distributed import agreement, sync
from dynsparse.errors import UserError
from dynsparse.keeping.asked import Asked
from dynsparse.seeds import seed_for

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Fraction, PurePath, torch.dtype, torch.device)


def require_same(asked: Asked, method_name: str, settings: object, group: sync.Group) -> None:
    """Raise UserError for ranks that were given other arguments: their masks would part ways. A collective."""
    mine: dict[str, object] = {name: getattr(asked, name) for name in type(asked).model_fields}
    mine["method"] = method_name, settings
    rows = torch.tensor([seed_for(canonical(one)) for one in mine.values()])
    if differing := agreement.all_agree(list(mine), rows, group):
        raise UserError(
            f"ranks made SparseTraining with different arguments ({', '.join(differing)}); give all the same, or each "
            f"a process_group of its own where they train models of their own"
        )


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
