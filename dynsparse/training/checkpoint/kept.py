"""The checkpoints on the disk: which file a snapshot becomes, and which files are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from dynsparse import files
from dynsparse.training.checkpoint.format import write
from dynsparse.training.checkpoint.renaming import link, remove_partial
from dynsparse.training.checkpoint.snapshot import Snapshot
from dynsparse.training.run import names


def step_files(folder: Path) -> list[Path]:
    """Return the checkpoints by step, newest first."""
    there = (path for path in folder.glob(names.STEPS) if names.step_in(path) is not None)
    return sorted((path for path in there if not files.is_folder(path)), reverse=True)


class KeptFiles:
    """Writes snapshots as `initial.pt`, the last `keep` as `step-*.pt`, `latest.pt` and `best.pt`.

    The latter two are further names of a step's file where they hold the same snapshot.
    """

    def __init__(self, folder: Path, keep: int, when_gone: Callable[[], None], guard: Callable[[], None]) -> None:
        self.folder = folder
        self._keep = keep
        self._when_gone = when_gone
        self._guard = guard
        self._newest: tuple[Path, int] | None = None
        """The newest step's file, and the number of its snapshot."""

    def put(self, name: str, snapshot: Snapshot) -> None:
        """Give the folder a file of this name. OSError if that fails, with whatever was there untouched.

        The latest stands under its step's name as well, and files of earlier steps make room for it.
        """
        self._guard()
        if not self.folder.exists():
            self._when_gone()
        remove_partial(self.folder)
        if name == names.LATEST and not self._has(snapshot):
            self._put_step(snapshot)
        path = self.folder / name
        files.make_way(path)
        if self._newest is not None and self._has(snapshot):
            link(self._newest[0], path, before=self._guard)
        else:
            write(path, snapshot.state, before=self._guard)
        if name == names.LATEST:
            self._prune(snapshot.step)

    def _put_step(self, snapshot: Snapshot) -> None:
        path = self.folder / names.of_step(snapshot.step)
        files.make_way(path)
        write(path, snapshot.state, before=self._guard)
        self._newest = path, snapshot.number

    def _has(self, snapshot: Snapshot) -> bool:
        """Tell whether the newest step's file holds this snapshot."""
        return self._newest is not None and self._newest[1] == snapshot.number and self._newest[0].exists()

    def _prune(self, step: int) -> None:
        """Remove the files of steps up to this one, but for the last few. One that stays does no harm."""
        kept = [path for path in step_files(self.folder) if (names.step_in(path) or 0) <= step and path.is_file()]
        for old in kept[self._keep :]:
            with contextlib.suppress(OSError):
                self._guard()
                old.unlink()
