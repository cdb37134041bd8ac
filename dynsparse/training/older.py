"""Runs that an older version began: what is sparse by default has changed since, and how defaults are written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dynsparse.config.schema import RunConfig
from pipelines.datasets.photographs import in_proportion

_BANK = re.compile(r"(.+)\.parametrizations\.(\w+)\.original")


def as_of_now(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a checkpoint's config with null where an older version wrote the number that a default came to.

    It would stay as it was when another `data.image_size` is asked for.
    """
    data = config.get("data", {})
    size, resize = data.get("image_size"), data.get("evaluation_resize")
    if type(size) is int and resize == in_proportion(size):
        return {**config, "data": {**data, "evaluation_resize": None}}
    return config


def with_layers_of(config: RunConfig, saved: Mapping[str, Any]) -> RunConfig:
    """The config with the very layers of a checkpoint, if that is from before `sparsity.split`.

    Then no parameter packed several layers, and other ones stayed dense. A run that has gone on under this version
    says its layers by name, in `sparsity.include`: they hold too where the config names none. A config that asks for
    other patterns than the checkpoint's keeps its own.
    """
    theirs, ours = saved["config"]["sparsity"], config.sparsity
    layers = [_literally(name) for name in _names(saved)]
    is_old = "split" not in theirs and (ours.include, ours.exclude) == (
        theirs.get("include"),
        theirs.get("exclude", []),
    )
    was_old = ours.include is None and theirs.get("include") == layers
    if not layers or not (is_old or was_old):
        return config
    sparsity = ours.model_copy(update={"include": layers, "exclude": [], "split": dict.fromkeys(layers, 1)})
    return config.model_copy(update={"sparsity": sparsity})


def _names(saved: Mapping[str, Any]) -> list[str]:
    """Names of the masked layers, or of the tied ones, which have no masks."""
    tied = [match for name in saved["weights"] if (match := _BANK.fullmatch(name))]
    return list(saved["masks"]["layers"]) or [f"{match[1]}.{match[2]}" for match in tied]


def _literally(name: str) -> str:
    """Shell pattern that matches this name alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)
