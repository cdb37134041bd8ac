"""Loading a config: a YAML file and `section.key=value` overrides become a valid `RunConfig`.

All mistakes are listed at once, each with its place, the value, the rule and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dynsparse import models, optimizers
from dynsparse.config.overrides import merge
from dynsparse.config.reading import plain, problems, read_file
from dynsparse.config.schema import RunConfig
from dynsparse.config.shipped import found
from dynsparse.errors import UserError
from dynsparse.explain import explain_all, kind_of, place

_NAMES = {"model": models.more_names, "optimizer": optimizers.more_names}
"""More names of a section than the schema lists."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `section.key=value` overrides, validate. Raises UserError, a line for each mistake."""
    return parse(read_mapping(path), overrides, source=str(path))


def read_mapping(path: str | Path) -> dict[Any, Any]:
    """Return the sections of a config's file, not validated. Raises UserError if it cannot be read or has none."""
    raw = plain(read_file(found(path), "--config", "configs/"), [RunConfig])
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {kind_of(raw)}; a config is a mapping of sections, as those in configs/ are")
    return raw


def parse(
    raw: Mapping[str, Any],
    overrides: Sequence[str] = (),
    source: str = "config",
    flags: Mapping[tuple[str, ...], str] | None = None,
) -> RunConfig:
    """Return the config of plain data and overrides. Raises UserError, a line for each mistake.

    `source` is named in errors. `flags` are options of the command line by the keys that they have set, so that an
    error names the option.
    """
    merged, overridden, wrong = merge(raw, overrides)
    if unfit := [f"{place(keys, '', source, overridden, flags or {})}: {what}" for keys, what in problems(merged)]:
        raise UserError(*wrong, *unfit)
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        wrong += explain_all(error, RunConfig, source, overridden, flags, _NAMES)
    if wrong:
        raise UserError(*wrong)
    return config
