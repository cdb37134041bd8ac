"""Errors of pydantic in our words: where, the value, the rule, the remedy, on one line each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from dynsparse.errors import nearest


def explain_all(error: ValidationError, root: type[BaseModel], source: str) -> list[str]:
    """A line for each thing that is wrong with the input of a model of class `root`."""
    return [explain(details, root, source) for details in error.errors()]


def explain(
    details: ErrorDetails,
    root: type[BaseModel],
    source: str,
    overridden: Sequence[tuple[str, ...]] = (),
    flags: Mapping[tuple[str, ...], str] | None = None,
) -> str:
    """One line for one of pydantic's errors on a `root`: where, the value, the rule, the remedy.

    `overridden` are the keys that command line overrides set, `flags` says which option has set a key.
    """
    location, model = _resolve(details["loc"], root)
    where = _where(location, details["msg"], source, overridden, flags or {})
    value = details["input"]
    match details["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key{_hint(location, model, overridden)}"
        case "missing":
            return f"{where}: missing; it has no default"
        case "union_tag_not_found" if isinstance(value, Mapping):
            return f"{where}: lacks 'name', which says which one it is"
        case "union_tag_invalid":
            room = {"method": "methods", "model": "models"}.get(location[-1])
            home = f"; yours goes in dynsparse/{room}/" if room else ""
            tags = details["ctx"]["expected_tags"].replace("'", "")
            return f"{where}.name: unknown {location[-1]} '{details['ctx']['tag']}'; there are {tags}{home}"
        case "value_error":
            return f"{where}: {details['ctx']['error']}"
        case "invalid_key":
            return f"{where}: keys are words; this one {kind_of(value)}"
        case _:
            return f"{where}: {kind_of(value)}; {_rule(details)}"


def kind_of(value: Any) -> str:
    """What a value is, for a message: `is "x"`."""
    shown = json.dumps(value, default=str)
    return f"is {shown if len(shown) < 60 else shown[:57] + '...'}" if not isinstance(value, dict) else "is a section"


def _overlap(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether one key path is the other, or above it."""
    return all(x == y for x, y in zip(a, b, strict=False))


def _where(
    location: Sequence[str],
    message: str,
    source: str,
    overridden: Sequence[tuple[str, ...]],
    flags: Mapping[tuple[str, ...], str],
) -> str:
    """Who is to blame: options by name, `section.key=value`, else the source."""
    key = ".".join(location)
    if location:
        named = [flag for keys, flag in flags.items() if _overlap(keys, location)]
    else:  # Sections that do not fit together: the message names their keys.
        named = [flag for keys, flag in flags.items() if len(keys) > 1 and ".".join(keys) in message]
    if named:
        return ", ".join(dict.fromkeys(named)) + (f" ({key})" if key else "")
    from_override = any(_overlap(keys, location) for keys in overridden)
    return f"{'command line' if from_override else source}: {key}" if key else source


def _hint(location: Sequence[str], model: type[BaseModel] | None, overridden: Sequence[tuple[str, ...]]) -> str:
    """What an unknown key may have been meant to be."""
    hint = nearest(location[-1], model.model_fields if model is not None else {})
    section = tuple(location[:-1])
    if (*section, "name") in overridden:
        return f" of this name{hint}; for another name replace the section: '{'.'.join(section)}={{name: ...}}'"
    return hint


def _rule(details: ErrorDetails) -> str:
    """What a value must be: ours where pydantic's words speak of Python."""
    match details["type"]:
        case "model_type" | "model_attributes_type" | "union_tag_not_found":
            return "it must be a section, with keys of its own"
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
    """The key path of a pydantic location (which also names union members), and the class that holds its last key."""
    keys: list[str] = []
    current: Any = root
    holder: type[BaseModel] | None = root
    for step in loc:
        members = _models_of(current)
        if len(members) > 1 and step in members:  # A union's tag: no key of the user's.
            current = members[str(step)]
            continue
        holder = next(iter(members.values())) if len(members) == 1 else None
        keys.append(str(step))
        field = holder.model_fields.get(str(step)) if holder is not None else None
        current = field.annotation if field is not None else None
    return keys, holder


def _models_of(annotation: Any) -> dict[str, type[BaseModel]]:
    """The classes that a value of this type can be, by the tags that tell them apart."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        name = annotation.model_fields.get("name")
        literal = get_args(name.annotation) if name is not None and get_origin(name.annotation) is Literal else ()
        return {str(next(iter(literal), annotation.__name__)): annotation}
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        tags = [item.tag for item in metadata if isinstance(item, Tag)]
        members = _models_of(inner)
        return dict(zip(tags, members.values(), strict=True)) if tags else members
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return {tag: model for member in get_args(annotation) for tag, model in _models_of(member).items()}
    return {}
