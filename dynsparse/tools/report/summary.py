"""summary.json, as far as it is what training writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dynsparse.training.callbacks import Summary
from dynsparse.training.run.log_records import BadLineError, number, whole_number, word

_CHECKS = {
    "str": word,
    "int": whole_number,
    "int | None": number,  # FLOPs of a whole run may be more than float64 tells one by one.
    "float": number,
    "float | None": number,
    "str | None": word,
}
"""Checks by the type of a field of `Summary`, as it is written there. Fields of other types are not shown."""


def checked_summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary without what is null or NaN. Older runs may lack keys.

    BadLineError names a key of a wrong kind.
    """
    known = {"status": _checked("status", found.get("status"), "str"), "versions": found.get("versions", {})}
    if not isinstance(known["versions"], dict):
        raise BadLineError("versions")
    if isinstance(found.get("dense"), Mapping):
        known["dense"] = found["dense"]  # Its rows are checked one by one: see `report.dense`.
    for field in fields(Summary):
        if field.type in _CHECKS and found.get(field.name) is not None:
            known[field.name] = _checked(field.name, found[field.name], str(field.type))
    return {name: value for name, value in known.items() if not (isinstance(value, float) and math.isnan(value))}


def _checked(name: str, value: Any, kind: str) -> Any:
    try:
        return _CHECKS[kind](value)
    except BadLineError:
        raise BadLineError(name) from None
