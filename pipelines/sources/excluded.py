"""The list of samples to skip (`data.exclude`), as `python -m pipelines scan` writes it."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.common.files import read_bytes

MOST = 4_000_000
"""Most names. With the bound on the file's size, this bounds memory."""


@dataclass(frozen=True)
class Excluded:
    """Names of samples, such as `train/ape/001.jpg`, relative to `data.path`."""

    names: frozenset[str] = frozenset()
    file: str = ""
    """File that holds the names, for messages."""

    @classmethod
    def read(cls, file: str | None) -> Excluded:
        """Read a text file with a name a line; lines that start with # are comments. Raises UserError."""
        if file is None:
            return cls()
        try:
            content = read_bytes(file)
        except (OSError, ValueError) as error:
            raise UserError(
                f"data.exclude: {file} cannot be read ({getattr(error, 'strerror', error)}); "
                "give the list that `python -m pipelines scan` wrote"
            ) from None
        if content.count(b"\n") > MOST:
            raise UserError(f"data.exclude: {file} has more than {MOST:,} lines; remove the files instead")
        # Windows editors write a byte order mark and \r. No listed name ends with \r.
        text = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", errors="surrogateescape", newline="\n")
        lines = (line.rstrip("\r\n") for line in text)
        return cls(frozenset(line for line in lines if line.strip() and not line.startswith("#")), file)

    def under(self, part: str) -> set[str]:
        """Return the names in a folder."""
        return {name for name in self.names if name.startswith(f"{part}/")}

    def require_under(self, parts: Collection[str], root: Path) -> None:
        """Raise UserError for names outside of these folders, which would have no effect."""
        known = tuple(f"{part}/" for part in parts)
        self.require_none([name for name in self.names if not name.startswith(known)], root)

    def require_in(self, shards: Collection[str], root: Path) -> None:
        """Raise UserError for names outside of these shards, which would have no effect.

        Names in other shards of the folder, which are not used, do no harm.
        """
        known, unused = set(shards), dict[str, bool]()

        def is_known(name: str) -> bool:
            return any(path in known or unused.setdefault(path, os.path.isfile(root / path)) for path in above(name))

        self.require_none([name for name in self.names if not is_known(name)], root)

    def require_none(self, missing: Collection[str], root: Path) -> None:
        """Raise UserError if there are names of no sample: the list belongs to other data."""
        if missing:
            raise UserError(
                f"data.exclude: {self.file} names {len(missing)} files that {root} does not have, such as "
                f"{min(missing)}; scan the folder again"
            )


def above(name: str) -> list[str]:
    """Return what comes before each slash of a name: one of it may be the shard that holds the sample."""
    return [name[: slash.start()] for slash in re.finditer("/", name)]


NOTHING = Excluded()
