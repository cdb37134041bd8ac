"""Errors of pydantic in our words, a line each: the place, the value, the rule, the remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dynsparse import hints
from dynsparse.errors import LONGEST_NUMBER
from dynsparse.hints import Names
from pipelines.common.text import cut, nearest

MOST_EXPLAINED = 20


def explain_all(
    error: ValidationError,
    root: type[BaseModel],
    source: str,
    overridden: Sequence[tuple[str, ...]] = (),
    flags: Mapping[tuple[str, ...], str] | None = None,
    names: Names | None = None,
) -> list[str]:
    """Return a line for each mistake in the input of a model of class `root`, up to MOST_EXPLAINED.

    `overridden` are the keys that overrides of the command line have set. `flags` are options by the keys that they
    have set. `names` are more names of a section, for hints.
    """
    details = error.errors()
    lines = [_explain(one, root, source, overridden, flags or {}, names or {}) for one in details[:MOST_EXPLAINED]]
    if len(details) > MOST_EXPLAINED:
        lines.append(f"{source}: {len(details) - MOST_EXPLAINED:,} more values are wrong; mend these first")
    return lines


def _explain(
    details: ErrorDetails,
    root: type[BaseModel],
    source: str,
    overridden: Sequence[tuple[str, ...]],
    flags: Mapping[tuple[str, ...], str],
    names: Names,
) -> str:
    """Return one line for one of pydantic's errors."""
    location, model = _resolve(details["loc"], root)
    where = place(location, details["msg"], source, overridden, flags)
    value = details["input"]
    match details["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key{_hint(location, model, root, overridden)}"
        case "missing":
            field = None if model is None else model.model_fields.get(location[-1])
            choices = [] if field is None else list(hints.models_of(field.annotation))
            choice = f"; give {{name: ...}}, one of {', '.join(choices)}" if len(choices) > 1 else ""
            return f"{where}: missing; it has no default{choice}"
        case "union_tag_not_found" if isinstance(value, Mapping):
            return f"{where}: lacks 'name', which says which one it is"
        case "union_tag_invalid":
            return f"{where}.name: {_unknown_name(location[-1], details['ctx'], names)}"
        case "value_error":
            return f"{where}: {details['ctx']['error']}"
        case "invalid_key":
            return f"{where}: keys are words; this one {kind_of(value)}"
        case _:
            return f"{where}: {kind_of(value)}; {_rule(details, location, root, names)}"


def kind_of(value: Any) -> str:
    """Return a value as a message names it: `is "x"`."""
    if isinstance(value, dict):
        return "is a section"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"is a whole number of {value.bit_length()} bits"
    if isinstance(value, str):
        value = cut(value)
    elif isinstance(value, list) and len(value) > 9:
        return f"is a list of {len(value):,}"
    return f"is {cut(json.dumps(value, default=str))}"


_HOMES = {
    "method": "; yours goes in a file (method.path), or to SparseTraining as an object",
    "model": "; yours goes in dynsparse/models/",
}


def _unknown_name(section: str, context: Mapping[str, Any], names: Names) -> str:
    tag, known = str(context["tag"]), re.findall(r"'([^']*)'", context["expected_tags"])
    home = _HOMES.get(section, "")
    hint = hints.for_name(tag, hints.with_more(section, known, names))
    return f"unknown {section} '{cut(tag)}'; there are {', '.join(known)}{home}{hint}"


def _overlap(a: Sequence[str], b: Sequence[str]) -> bool:
    """Return whether one key path is the other, or above it."""
    return all(x == y for x, y in zip(a, b, strict=False))


def place(
    location: Sequence[str],
    message: str,
    source: str,
    overridden: Sequence[tuple[str, ...]],
    flags: Mapping[tuple[str, ...], str],
) -> str:
    """Return where a key was set: the options by name, the command line, else the source."""
    key = ".".join(map(cut, location))
    if location:
        named = [flag for keys, flag in flags.items() if _overlap(keys, location)]
    else:  # Sections that do not fit together: the message names their keys.
        named = [flag for keys, flag in flags.items() if len(keys) > 1 and ".".join(keys) in message]
    if named:
        return ", ".join(dict.fromkeys(named)) + (f" ({key})" if key else "")
    from_override = any(_overlap(keys, location) for keys in overridden)
    return f"{'command line' if from_override else source}: {key}" if key else source


def _hint(
    location: Sequence[str],
    model: type[BaseModel] | None,
    root: type[BaseModel],
    overridden: Sequence[tuple[str, ...]],
) -> str:
    """Return a hint for an unknown key."""
    section = tuple(location[:-1])
    if section and (*section, "name") in overridden:
        hint = nearest(location[-1], model.model_fields if model is not None else {})
        return f" of this name{hint}; for another name replace the section: '{'.'.join(section)}={{name: ...}}'"
    return hints.for_key(location, model, root)


def _rule(details: ErrorDetails, location: Sequence[str], root: type[BaseModel], names: Names) -> str:
    """Return the rule that a value breaks, in our words where pydantic's are about Python."""
    match details["type"]:
        case "model_type" | "model_attributes_type" | "union_tag_not_found":
            hint = hints.for_section(location, details["input"], root, names)
            return f"it must be a section, with keys of its own{hint}"
        case "int_type" if isinstance(details["input"], str) and len(details["input"]) > LONGEST_NUMBER:
            return f"numbers have at most {LONGEST_NUMBER} characters"
        case "too_long":
            return f"it must have at most {details['ctx']['max_length']:,} entries"
        case "too_short":
            return f"it must have at least {details['ctx']['min_length']} entries"
        case "literal_error" if isinstance(details["input"], str):
            known = re.findall(r"'([^']*)'", details["msg"])
            hint = nearest(details["input"].lower(), known)
            return details["msg"][0].lower() + details["msg"][1:] + (hint if "did you mean" in hint else "")
        case "string_pattern_mismatch":
            return "it must be one plain word of letters, digits and _ . = + -"
        case _:
            return details["msg"][0].lower() + details["msg"][1:]


def _resolve(loc: Sequence[int | str], root: type[BaseModel]) -> tuple[list[str], type[BaseModel] | None]:
    """Return the key path of a pydantic location, which also names union members, and the class of its last key."""
    keys: list[str] = []
    current: Any = root
    holder: type[BaseModel] | None = root
    for step in loc:
        members = hints.models_of(current)
        if len(members) > 1 and step in members:  # The tag of a union is not a key.
            current = members[str(step)]
            continue
        holder = next(iter(members.values())) if len(members) == 1 else None
        keys.append(str(step))
        field = holder.model_fields.get(str(step)) if holder is not None else None
        current = field.annotation if field is not None else None
    return keys, holder
