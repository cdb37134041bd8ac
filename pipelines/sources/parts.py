"""The parts of a data set in folders: to train on, to choose the best epoch by, and to test on."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pipelines.common.errors import UserError

TRAIN, TEST = "train", "test"
VALIDATION = ("val", "valid", "validation")
"""Names of the same part."""
UNFINISHED = ".preparing"
"""Folder within a data set while `python -m pipelines prepare` fills it, and after one that was stopped."""


T = TypeVar("T", covariant=True)
S = TypeVar("S")


@dataclass(frozen=True)
class Split(Generic[T]):
    """One thing of each part that there is: names, shards, sources."""

    train: T
    test: T | None
    validation: T | None

    @property
    def there(self) -> tuple[T, ...]:
        """The things, that of training first."""
        return (self.train, *(one for one in (self.validation, self.test) if one is not None))

    def map(self, make: Callable[[T], S]) -> Split[S]:
        """Return what is made of each."""
        test, validation = (None if one is None else make(one) for one in (self.test, self.validation))
        return Split(make(self.train), test, validation)


@dataclass(frozen=True)
class Parts:
    """Names of folders, or patterns of shards."""

    test: str | None
    """None if there is no test data: then training samples must be held out to choose the best epoch by."""
    validation: str | None = None
    """Data to choose the best epoch by, if the data set has them beside test data."""
    train: str = TRAIN

    @property
    def there(self) -> tuple[str, ...]:
        """Parts that exist, training first."""
        return (self.train, *(name for name in (self.validation, self.test) if name is not None))

    @property
    def split(self) -> Split[str]:
        return Split(self.train, self.test, self.validation)

    def require(self, root: Path, validation_samples: int) -> None:
        """Raise UserError unless there is data to evaluate on, and one set to choose the best epoch by."""
        if self.test is None and validation_samples == 0:
            raise UserError(
                f"data.path: {root} has nothing to evaluate on; name that folder {', '.join(VALIDATION)} or {TEST}, "
                "with a folder for each class, or hold out training samples by data.validation_samples"
            )
        if self.validation is not None and validation_samples > 0:
            raise UserError(
                f"data.validation_samples is {validation_samples}, and {root} has {self.validation} beside {self.test} "
                f"to choose the best epoch by; set data.validation_samples=0, or move {self.validation} away"
            )


def find_parts(root: Path, holds_samples: Callable[[Path], bool]) -> Parts:
    """Return the parts of `root` by the names of its folders.

    Raises UserError if two folders are for the same part, or images may be missing.
    """
    if is_folder(root / UNFINISHED):
        raise UserError(
            f"data.path: {root} is prepared in part; give the same command again (prepare ...), it goes on, or "
            f"remove {root / UNFINISHED}"
        )
    return parts_among(root, lambda name: is_folder(root / name), lambda name: holds_samples(root / name))


def parts_among(root: Path, is_there: Callable[[str], bool], holds_samples: Callable[[str], bool]) -> Parts:
    """Return the parts of `root`, by the names for which `is_there` is True.

    Validation data without test data are the test data. `test` counts only if it holds samples of known classes:
    ImageNet's own test images have none. Raises UserError if two names are for the same part.
    """
    found = [name for name in VALIDATION if is_there(name)]
    if len(found) > 1:
        raise UserError(
            f"data.path: {root} has {' and '.join(found)}, which are names for the same thing; move all but one away"
        )
    test = TEST if is_there(TEST) and holds_samples(TEST) else None
    validation = found[0] if found else None
    return Parts(test, validation) if test is not None else Parts(test=validation)


def require_apart(root: Path, files: Mapping[str, Collection[str]]) -> None:
    """Raise UserError if two parts have the same file. `files` are paths relative to `root`, by the name of a part."""
    known: dict[str, str] = {}
    for part, paths in files.items():
        for path in paths:
            other = known.setdefault(os.path.realpath(root / path), part)
            if other != part:
                raise UserError(
                    f"{root / path} is of both {other} and {part}; what is trained on, or chosen by, tests nothing: "
                    "give each its own"
                )


def is_folder(path: Path) -> bool:
    """Return True for a folder. Raises UserError if that cannot be known."""
    try:
        return path.is_dir()
    except OSError as error:
        raise UserError(f"data.path: {path} cannot be read ({error.strerror}); make it readable") from None
