"""The list of samples to leave out (`data.exclude`), as `python -m pipelines.scan` writes it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import DataError


@dataclass(frozen=True)
class Excluded:
    """Names of samples, such as `train/ape/001.jpg`, relative to `data.path`."""

    names: frozenset[str] = frozenset()
    file: str = ""
    """Where they stand."""

    @classmethod
    def read(cls, file: str | None) -> Excluded:
        """From a text file with a name a line; lines that start with # are comments. DataError if it cannot be read."""
        if file is None:
            return cls()
        try:
            lines = Path(file).read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        except OSError as error:
            raise DataError(
                f"data.exclude: {file} cannot be read ({error.strerror}); "
                "give the list that `python -m pipelines.scan` wrote"
            ) from None
        return cls(frozenset(line for line in lines if line.strip() and not line.startswith("#")), file)

    def under(self, part: str) -> set[str]:
        """The names that begin with a folder's."""
        return {name for name in self.names if name.startswith(f"{part}/")}

    def require_none(self, missing: Collection[str], root: Path) -> None:
        """Raise DataError if there are names that stand for nothing: the list is of other data."""
        if missing:
            raise DataError(
                f"data.exclude: {self.file} names {len(missing)} files that {root} does not have, such as "
                f"{min(missing)}; scan the folder again"
            )


NOTHING = Excluded()
