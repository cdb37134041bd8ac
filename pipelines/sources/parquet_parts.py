"""The shards of each part of a data set in parquet files, by their names. No file is opened, and pyarrow not needed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.common.text import some_of
from pipelines.sources.parts import TEST, TRAIN, Parts, parts_among
from pipelines.sources.shards import matching

EXAMPLE = "data/train-*.parquet"
_PLACES = ("{part}-*.parquet", "{part}/*.parquet", "{part}.parquet")
_PATTERNS = (*_PLACES, *(f"*/{place}" for place in _PLACES))
_NUMBERED = re.compile(r"-\d{5}-of-(\d{5})\.parquet")


def require_pyarrow(asked: str) -> None:
    """Raise UserError if pyarrow is not installed. `asked` says who needs it: "data.name is parquet"."""
    if find_spec("pyarrow") is None:
        raise UserError(
            f"{asked}, which needs pyarrow, and that is not installed here; pip install 'dynsparse[parquet]'"
        )


def parquet_parts(root: Path, holds_labels: Callable[[str], bool]) -> Parts:
    """Return the patterns of all parts. `holds_labels` is asked for the first shard of `test`. Raises UserError."""
    parts = parts_among(
        root,
        is_there=lambda name: pattern_of(root, name) is not None,
        holds_samples=lambda name: holds_labels(shards_of(root, pattern_of(root, name) or name, "data.path")[0]),
    )
    test, validation = (None if name is None else pattern_of(root, name) for name in (parts.test, parts.validation))
    return Parts(test, validation, pattern_of(root, TRAIN) or EXAMPLE)


def shards_of(root: Path, pattern: str, setting: str) -> tuple[str, ...]:
    """Return the sorted paths of the shards, relative to the root. Raises UserError if there is none."""
    return matching(root, pattern, setting, EXAMPLE)


def require_complete(root: Path, paths: tuple[str, ...], setting: str) -> None:
    """Raise UserError for a set of shards `...-00003-of-00294.parquet` that is not whole."""
    for path in paths:
        if (found := _NUMBERED.search(path)) is not None and int(found[1]) != len(paths):
            raise UserError(
                f"{setting}: {root} has {len(paths)} shards of {int(found[1])}, by the name {os.path.basename(path)}; "
                f"fetch all, or give the pattern of those to use by {setting}"
            )


def pattern_of(root: Path, part: str) -> str | None:
    """Return the pattern of a part's shards; None if there is none. Raises UserError if they lie in several folders."""
    found = {pattern: _matches(root, pattern.format(part=part)) for pattern in _PATTERNS}
    every = set().union(*found.values())
    if len(folders := sorted({str(path.parent.relative_to(root)) for path in every})) > 1:
        raise UserError(
            f"data.path: {root} has shards of {part} in {some_of(folders)}; give one of these folders as data.path, or "
            f"patterns by data.train_shards, data.{'test' if part == TEST else 'val'}_shards"
        )
    whole = (pattern.format(part=part) for pattern, paths in found.items() if paths and paths == every)
    return next(whole, None)


def _matches(root: Path, pattern: str) -> set[Path]:
    try:
        return {path for path in root.glob(pattern) if not path.name.startswith(".")}
    except OSError:  # The root may be anything; `matching` tells.
        return set()
