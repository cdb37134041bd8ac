"""Find the newest valid checkpoint of a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from dynsparse import files
from dynsparse.errors import StorageError, UserError
from dynsparse.training.checkpoint.format import State
from dynsparse.training.checkpoint.kept import step_files
from dynsparse.training.run import names

log = logging.getLogger(__name__)


def newest(folder: Path, read: Callable[[Path], State]) -> tuple[Path, State] | None:
    """Return the newest checkpoint that `read` accepts, under any name. None if the folder has none at all.

    Damaged ones are named in a warning and skipped. UserError if there are only such.
    """
    search = _Search(read)
    for path in step_files(folder):
        if search.look_at(path):
            break
    for name in (names.LATEST, names.BEST):
        search.look_at(folder / name)
    if search.found is None:
        search.look_at(folder / names.INITIAL)
    if search.found is None and search.damaged:
        raise UserError(*search.damaged, f"{folder}: no valid checkpoint; start anew with --overwrite")
    for line in search.damaged:
        log.warning("%s", line)
    return search.found


class _Search:
    """Looks at one checkpoint after the other. Each file is read once, whatever its names."""

    def __init__(self, read: Callable[[Path], State]) -> None:
        self.found: tuple[Path, State] | None = None
        self.damaged: list[str] = []
        self._read = read
        self._seen: set[tuple[int, int]] = set()

    def look_at(self, path: Path) -> bool:
        """Tell whether a file is valid. It is the one to take if it is newer than those before."""
        try:
            state = self._state_of(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except StorageError:
            raise
        except (UserError, OSError) as error:
            if isinstance(error, OSError) and files.may_pass(error):
                raise StorageError(f"checkpoint {path}: cannot be read ({error.strerror})") from None
            self.damaged.append(str(error))
            return False
        if state is None:
            return False
        if self.found is None or state["progress"]["step"] > self.found[1]["progress"]["step"]:
            self.found = path, state
        return True

    def _state_of(self, path: Path) -> State | None:
        """Read a file; None if it was read under another name."""
        status = os.stat(path)
        identity = status.st_dev, status.st_ino
        if identity in self._seen:
            return None
        self._seen.add(identity)
        return self._read(path)
