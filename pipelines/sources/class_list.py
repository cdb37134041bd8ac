"""The names of classes beside shards: `classes.txt`, a name a line, beginning with label 0."""

from __future__ import annotations

from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.common.files import read_text
from pipelines.sources.class_folders import require_names

CLASSES = "classes.txt"
MOST_CLASSES = 1 << 20


def read_names(root: Path) -> tuple[str, ...]:
    """Return the names in the folder of the shards; none without such a file. Raises UserError if it is invalid."""
    path = root / CLASSES
    try:
        text = read_text(path)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        reason = "is no UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
        raise UserError(f"data.path: {path} cannot be read ({reason}); write a name of a class a line") from None
    if text.count("\n") > MOST_CLASSES:
        raise UserError(f"data.path: {path} has more than {MOST_CLASSES:,} lines; write a name of a class a line")
    names = tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))
    if "" in names:
        raise UserError(f"data.path: {path} has no name in line {names.index('') + 1}; write a name of a class a line")
    require_names(f"{path} has the class", names)
    return names
