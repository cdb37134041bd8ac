"""Keys of a config that is still plain data: looked up, set, and set by overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dynsparse.config.documents import MOST_LEVELS
from dynsparse.config.reading import plain, read, under
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.explain import kind_of
from pipelines.common.text import cut


def merge(raw: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[tuple[str, ...]], list[str]]:
    """Return a copy with the overrides in it, their key paths, and a line for each that is not valid."""
    merged = _copy(raw)
    overridden: list[tuple[str, ...]] = []
    wrong: list[str] = []
    for text in overrides:
        try:
            overridden.append(_override(merged, text))
        except UserError as error:
            wrong += error.lines
    return merged, overridden, wrong


def _copy(raw: Any, level: int = 0) -> Any:
    """Copy the mappings, as far down as a config can go."""
    if level > MOST_LEVELS or not isinstance(raw, Mapping):
        return raw
    return {key: _copy(value, level + 1) for key, value in raw.items()}


def _override(config: dict[str, Any], text: str) -> tuple[str, ...]:
    """Set one `section.key=value` in place, and return its key path."""
    path, equals, value = text.partition("=")
    keys = tuple(path.strip().split("."))
    if not equals or not all(keys):
        raise UserError(f"'{cut(text)}' is no override; write section.key=value, such as train.epochs=20")
    if re.search(r"^#|\s#", value) and not re.search("[\"']", value):
        raise UserError(
            f"'{cut(text)}': what follows # would be a comment; put the value in quotes of its own, '\"...\"'"
        )
    types: list[Any] = [RunConfig]
    for key in keys:
        types = under(types, key)
    put(config, keys, plain(read(value, f"'{cut(text)}'"), types), f"'{cut(text)}'")
    return keys


def put(config: dict[str, Any], keys: Sequence[str], value: Any, source: str) -> None:
    """Set a key in place, and make the sections above it.

    Raises UserError, naming `source`, if one of these is no section.
    """
    section = config
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UserError(f"{source}: {key} {kind_of(section)}, no section; its keys cannot be set")
    section[keys[-1]] = value


def look(config: Mapping[str, Any], key: str) -> Any:
    """Return the value at section.key; None if there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def overlap(override: str, key: str) -> bool:
    """Return whether a section.key=value sets the key, something in it, or the section around it."""
    parts = override.partition("=")[0].strip().split(".")
    return all(a == b for a, b in zip(parts, key.split("."), strict=False))
