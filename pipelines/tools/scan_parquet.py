"""The parts of a data set in parquet files, to scan. It needs pyarrow, so it is imported only for such data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from pipelines.sources.parquet_parts import evaluated_parts, pattern_of, shards_of
from pipelines.sources.parquet_shards import Asked, columns_of, has_labels, list_parquet
from pipelines.sources.parts import TEST, TRAIN, VALIDATION
from pipelines.tools.scan_report import Part

MOST_CLASSES = 1 << 16
"""Most classes in shards that name none."""


def patterns_of(root: Path, asked: Asked) -> dict[str, str]:
    """Return the pattern of the shards of each part that is there. Raises UserError."""
    train = pattern_of(root, TRAIN)
    others = asked if train is None else _beside(root, train, asked)
    there = evaluated_parts(root, lambda paths: has_labels(root, paths, others)).split.there[1:]
    named = {pattern_of(root, name): name for name in (TRAIN, *VALIDATION, TEST)}
    return {named[pattern]: pattern for pattern in (train, *there) if pattern is not None}


def _beside(root: Path, train: str, asked: Asked) -> Asked:
    """Return the columns to use beside training's: labels are in the same, or there are none."""
    first = shards_of(root, train, "--shards")[0]
    return Asked(asked.image, columns_of(root, first, asked, "--shards").label)


def scan_parts(root: Path, patterns: Mapping[str, str], asked: Asked) -> list[Part]:
    """Return the parts. Raises UserError if a shard cannot be read."""
    others = _beside(root, patterns[TRAIN], asked) if TRAIN in patterns else asked
    found = {
        name: list_parquet(
            root,
            shards_of(root, pattern, "--shards"),
            MOST_CLASSES,
            asked=asked if name == TRAIN else others,
            setting="--shards",
            every_class=False,
        )
        for name, pattern in patterns.items()
    }
    classes = 1 + max(int(shards.labels.max()) for shards in found.values())
    named = next(iter(found.values())).reader.columns.class_names
    names = named if len(named) >= classes else tuple(map(str, range(classes)))
    parts = []
    for name, shards in found.items():
        there = range(len(names)) if name == TRAIN else sorted(set(shards.labels.tolist()))
        parts.append(Part(name, dataclasses.replace(shards, class_names=names), tuple(names[i] for i in there)))
    return parts
