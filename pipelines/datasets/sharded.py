"""The shards of each part of a data set: those of given patterns, else those that the names of files imply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines.sources.excluded import Excluded
from pipelines.sources.parts import Parts, Split, require_apart

TRAIN, VAL, TEST = "data.train_shards", "data.val_shards", "data.test_shards"


class Given(Protocol):
    """Settings with patterns of shards, relative to `path`; None where the names imply them."""

    @property
    def path(self) -> str: ...
    @property
    def train_shards(self) -> str | None: ...
    @property
    def val_shards(self) -> str | None: ...
    @property
    def test_shards(self) -> str | None: ...
    @property
    def validation_samples(self) -> int: ...


@dataclass(frozen=True)
class PartShards:
    """The shards of one part."""

    setting: str
    """Key of the pattern, for messages."""
    pattern: str
    given: bool
    """True for a pattern of the settings."""


def patterns(settings: Given, train: Callable[[], str], evaluated: Callable[[PartShards], Parts]) -> Split[PartShards]:
    """Return the patterns of all parts.

    `train` and `evaluated` tell what the names of files imply, and are asked only where nothing is given. `evaluated`
    is told the training shards.
    """
    training = PartShards(TRAIN, settings.train_shards or train(), settings.train_shards is not None)
    test, validation = settings.test_shards, settings.val_shards
    given = test is not None or validation is not None
    if not given:
        implied = evaluated(training)
        test, validation = implied.test, implied.validation
    elif test is None:
        test, validation = validation, None
    of_test = TEST if settings.test_shards is not None or validation is not None else VAL
    return Split(
        training,
        None if test is None else PartShards(of_test, test, given),
        None if validation is None else PartShards(VAL, validation, given),
    )


def require_parts(settings: Given, parts: Split[PartShards], paths: Callable[[PartShards], tuple[str, ...]]) -> None:
    """Raise UserError unless there is data to train and to evaluate on, and no file is in two parts."""
    root = Path(settings.path)
    require_apart(root, {part.setting: paths(part) for part in parts.there})
    names = parts.map(lambda part: part.pattern)
    Parts(names.test, names.validation, names.train).require(root, settings.validation_samples)


def excluded(settings: Given, file: str | None, shards: Split[tuple[str, ...]]) -> frozenset[str]:
    """Return the names of the samples to skip. Raises UserError if a name is of no shard that is there."""
    found = Excluded.read(file)
    found.require_in({path for paths in shards.there for path in paths}, Path(settings.path))
    return found.names
