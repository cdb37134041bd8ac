"""Fields of the config, by the schema: values that none takes, numbers at the ends of what it may be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any

from dynsparse.config import schema as config
from tests.fuzz.inputs.mutations.registry import mutation
from tests.fuzz.inputs.place import Place

WORDS = (
    "", "null", "true", "maybe", "-1", "0", "1", "2", "3", "0.5", "1e-3", "1e400", ".nan", ".inf", "9999999999",
    "99999999999999999999999999", "[]", "[1]", "[1,2,3]", "{}", "{name: x}", "x", "..", "/", "~", "$HOME", "${X}",
    "a\nb", "\x1b[31m", "*", "[*", "**", "&a x", "*a", "!!int x", "'", '"', "{", "[" * 2_000, "a: b", "=", "a=b",
    "steps", "cosine", "sgd", "adamw", "rigl", "dsr", "dense", "torch", "skip", "row", "float16", "0x10", "1_000",
    "0b1", "1:30", "2030-01-01", "x" * 10_000, "9" * 5_000,
)  # fmt: skip
NUMBERS = (
    "0", "1", "2", "-1", "255", "65536", "2147483647", "2147483648", "4294967296", "9007199254740993",
    "9223372036854775807", "9223372036854775808", "1e-300", "1e300", "0.999999999", "1.0",
)  # fmt: skip
ORDINARY = ("1", "2", "3", "4", "10", "16", "0.5", "0.1", "true", "[4]", "[1, 6, 6]")
Schema = dict[str, Any]


@cache
def _schema() -> Schema:
    found: Schema = json.loads(config.json_schema())
    return found


def _alternatives(field: Schema) -> Iterator[Schema]:
    """Schemas of a field's alternatives that are sections."""
    for each in (field, *field.get("anyOf", ()), *field.get("oneOf", ())):
        target = _schema()["$defs"][each["$ref"].rpartition("/")[2]] if "$ref" in each else each
        if "properties" in target:
            yield target
        elif target is not field:
            yield from _alternatives(target)


def _paths(section: Schema, prefix: str = "") -> Iterator[tuple[str, Schema]]:
    for name, field in section["properties"].items():
        yield prefix + name, field
        for inner in _alternatives(field):
            yield from _paths(inner, f"{prefix}{name}.")


@cache
def paths() -> dict[str, Schema]:
    """All fields of the schema, each with its sections in its name."""
    return dict(sorted(_paths(_schema()), key=lambda pair: pair[0]))


@mutation("config")
def overrides(rng: Random, place: Place) -> str:
    for _ in range(rng.choice((1, 1, 2, 4))):
        key, how = rng.choice(list(paths())), rng.random()
        if how < 0.1:
            odd = (f"{key}.x", key.upper(), f"{key}.", f".{key}", "..", "", "a.b.c.d", key.replace(".", ".."))
            key = rng.choice((key.rpartition(".")[2], *odd))
        place.overrides.append(f"{key}={rng.choice(WORDS)}" if how < 0.97 else key)
    return "overrides"


@mutation("config")
def one_number(rng: Random, place: Place) -> str:
    """Set one field of a section that the config has to an odd number."""
    there = [key for key in paths() if "." not in key or key.split(".")[0] not in ("model", "data", "method")]
    there += [f"{name}.{key}" for name in ("model", "data", "method") for key in place.config[name] if key != "name"]
    place.overrides.append(f"{rng.choice(there)}={rng.choice(NUMBERS)}")
    return "a number"


@mutation("config")
def another_section(rng: Random, place: Place) -> str:
    """Another model, method, data set, optimizer or schedule, with numbers at their ends."""
    several = [key for key, field in paths().items() if len(list(_alternatives(field))) > 1]
    key = rng.choice(several)
    section = rng.choice(list(_alternatives(paths()[key])))["properties"]
    name = section["name"].get("const") or rng.choice(section["name"].get("enum") or ["torchvision/resnet18"])
    chosen = rng.sample(
        [field for field in section if field != "name"], min(len(section) - 1, rng.choice((1, 1, 2, 9)))
    )
    extreme = rng.choice(chosen) if chosen else None
    values = [f"{field}: {rng.choice(NUMBERS if field == extreme else ORDINARY)}" for field in chosen]
    place.overrides.append(f"{key}={{{', '.join([f'name: {name}', *values])}}}")
    return f"another {key}"
