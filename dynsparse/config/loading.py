"""Loading a config: a YAML file and `section.key=value` overrides become a valid `RunConfig`.

All mistakes are listed at once, each with its place, the value, the rule and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError, create_model

from dynsparse import models, optimizers
from dynsparse.config import own_file, own_method
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
    if own_method.is_own(section := raw.get("method")):
        raw["method"] = own_method.beside(section, found(path).parent)
    return raw


def parse(
    raw: Mapping[str, Any],
    overrides: Sequence[str] = (),
    source: str = "config",
    flags: Mapping[tuple[str, ...], str] | None = None,
    *,
    run_code: bool = True,
) -> RunConfig:
    """Return the config of plain data and overrides. Raises UserError, a line for each mistake.

    `source` is named in errors. `flags` are options of the command line by the keys that they have set, so that an
    error names the option. `run_code`: whether the file of a method of one's own is run. Without it the config tells of
    the network alone.
    """
    merged, overridden, wrong = merge(raw, overrides)
    if unfit := [f"{place(keys, '', source, overridden, flags or {})}: {what}" for keys, what in problems(merged)]:
        raise UserError(*wrong, *unfit)
    root, why_not = _root(merged, run_code=run_code)
    wrong += [f"{place(('method', 'path'), '', source, overridden, flags or {})}: {line}" for line in why_not]
    try:
        config = _validated(root, merged)
    except ValidationError as error:
        wrong += explain_all(error, root, source, overridden, flags, _NAMES)
    except UserError as error:
        wrong += error.lines
    if wrong:
        raise UserError(*wrong)
    return config


def _root(merged: dict[str, Any], *, run_code: bool) -> tuple[type[RunConfig], Sequence[str]]:
    """Return the schema of a config, with the options of a method of one's own; and why its file cannot be taken.

    Completes the method's section in place.
    """
    section = merged.get("method")
    if not own_method.is_own(section):
        return RunConfig, ()
    try:
        settings = own_file.settings_class(section) if run_code else own_method.Unread
    except UserError as error:
        merged["method"] = {"name": "unread", "path": "."}  # So that the other sections are looked at as well.
        return _with_method(own_method.Unread), error.lines
    if run_code:
        merged["method"] = own_file.completed(section, settings)
    return _with_method(settings), ()


@cache
def _with_method(settings: type[own_method.OwnMethod]) -> type[RunConfig]:
    made: type[RunConfig] = create_model("RunConfig", __base__=RunConfig, __doc__=RunConfig.__doc__, method=settings)
    return made


def _validated(root: type[RunConfig], merged: Mapping[str, Any]) -> RunConfig:
    """Return the config. Raises ValidationError, and UserError for an exception in a file of one's own."""
    method = merged.get("method")
    with own_file.told(method["path"] if own_method.is_own(method) else None):
        config = root.model_validate(merged)
        if own_method.source_of(config.method) is not None:
            return config.model_copy(update={"method": own_method.noted(config.method)})
    return config
