"""The shards of each part of a data set in parquet files, by their names. No file is opened, and pyarrow not needed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.common.extras import install_command
from pipelines.common.text import some_of
from pipelines.sources.parts import TEST, TRAIN, Parts, parts_among
from pipelines.sources.shards import matching

EXAMPLE = "data/train-*.parquet"
_PLACES = ("{part}-*.parquet", "{part}/*.parquet", "{part}.parquet")
_PATTERNS = (*_PLACES, *(f"*/{place}" for place in _PLACES))
_NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?\.parquet")
"""Names of the Hub: older ones have a checksum behind the numbers."""


def require_pyarrow(asked: str) -> None:
    """Raise UserError if pyarrow is not installed. `asked` says who needs it: "data.name is parquet"."""
    if find_spec("pyarrow") is None:
        raise UserError(f"{asked}, which needs pyarrow, and that is not installed here; {install_command('parquet')}")


def train_pattern(root: Path) -> str:
    """Return the pattern of the training shards, or how it might look if there are none. Raises UserError."""
    return pattern_of(root, TRAIN) or EXAMPLE


def evaluated_parts(root: Path, holds_labels: Callable[[Sequence[str]], bool]) -> Parts:
    """Return the patterns of the parts to evaluate on; that of training is an example. Raises UserError.

    `holds_labels` is asked for the shards of `test`.
    """
    parts = parts_among(
        root,
        is_there=lambda name: pattern_of(root, name) is not None,
        holds_samples=lambda name: holds_labels(shards_of(root, pattern_of(root, name) or name, "data.path")),
    )
    test, validation = (None if name is None else pattern_of(root, name) for name in (parts.test, parts.validation))
    return Parts(test, validation, EXAMPLE)


def shards_of(root: Path, pattern: str, setting: str) -> tuple[str, ...]:
    """Return the sorted paths of the shards, relative to the root. Raises UserError if there is none."""
    return matching(root, pattern, setting, EXAMPLE)


def require_complete(root: Path, paths: tuple[str, ...], setting: str) -> None:
    """Raise UserError unless shards `...-00003-of-00294.parquet` are all there, each once."""
    numbered = [found for path in paths if (found := _NUMBERED.search(path)) is not None]
    for found in numbered:
        count = int(found[2])
        if len(paths) != count or {int(one[1]) for one in numbered} != set(range(count)):
            missing = sorted(set(range(count)) - {int(one[1]) for one in numbered})
            lacks = f", without number {some_of([f'{number:05}' for number in missing])}" if missing else ""
            raise UserError(
                f"{setting}: {root} has {len(paths)} shards of {count}{lacks}, by the name "
                f"{os.path.basename(found.string)}; fetch all, or give the pattern of those to use by {setting}"
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
