"""The checkpoints of a run: which there are, which are kept, which is the newest that is whole."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dynsparse import files
from dynsparse.errors import StorageError, UserError
from dynsparse.training.checkpoint.format import State, read, write
from dynsparse.training.checkpoint.timing import InBackground
from dynsparse.training.run import names

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""Between two tries to write what could not be written, where no save is due."""


class _Saved(NamedTuple):
    state: State
    step: int
    number: int
    """Of the save: there may be several after one step, of different states."""


class CheckpointFolder:
    """The checkpoints of a run: `initial.pt`, the last `keep` as `step-*.pt`, `latest.pt`, `best.pt`.

    One save at a time is written, in the background if asked so; nothing else may write to the folder meanwhile.
    What cannot be written is kept in memory and tried again: the newest state, the best, the initial one.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        when_gone: Callable[[], None] = lambda: None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """`when_gone` is called before a save that finds no folder; it may raise OSError. So may `guard`, which is
        called before each change of the disk."""
        self._when_gone = when_gone
        self._guard = guard
        self.folder = folder
        self.keep = keep
        self._unwritten: dict[str, _Saved] = {}
        """By the name that it is to have: latest, best, initial."""
        self._failed: dict[str, str] = {}
        self._failed_at = 0.0
        self._saves = 0
        self._whole: _Written | None = None
        """The newest file that was written."""
        self._writing = InBackground()
        self._waited = 0.0
        self._said_slow = False

    @property
    def failures(self) -> list[str]:
        """Why the newest state, the best or the initial one is not on the disk: a line for each that is not.

        Of the saves that are written: `wait` first.
        """
        return list(self._failed.values())

    @property
    def failure(self) -> str | None:
        """The first of `failures`, if any."""
        return next(iter(self._failed.values()), None)

    @property
    def behind(self) -> list[str]:
        """The files that could not be written yet."""
        return [str(self.folder / f"{name}.pt") for name in self._failed]

    def save(self, state: State, step: int, *, best: bool = False, initial: bool = False) -> None:
        """Save the state after `step`. A failure is kept in `failure` and logged; older files stay as they were."""
        self.begin(lambda: state, step, best=best, initial=initial)
        self.wait()

    def begin(self, content: Callable[[], State], step: int, *, best: bool = False, initial: bool = False) -> None:
        """As `save`, in the background: there `content` is called, which must need nothing that training changes."""
        self._say_if_slow()

        def save() -> None:
            self._unwritten.pop("latest", None)  # What comes is newer: memory holds one of them at a time.
            self._save(content(), step, best=best, initial=initial)

        self._writing.start(save)

    def wait(self) -> None:
        """Until all is written, or known to have failed. Raises what no disk is to blame for."""
        self._writing.wait()

    def has_written(self, *, within: float) -> bool:
        """Wait for so many seconds at most. Returns whether nothing is left to write; raises as `wait` does.

        To be asked before a snapshot is taken, so that there is one at a time in memory, and no save is left out.
        """
        began = time.monotonic()
        done = self._writing.wait(within)
        self._waited += time.monotonic() - began
        return done

    def retry(self, *, now: bool = False) -> None:
        """Try again, in the background, to write what could not be written. Unless it is `now`, not too often."""
        due = now or time.monotonic() - self._failed_at >= RETRY_SECONDS
        if self._failed and due and self._writing.wait(0):
            self._writing.start(self._write)

    def _say_if_slow(self) -> None:
        if self._waited >= 1 and not self._said_slow:
            self._said_slow = True
            log.warning(
                "training waited %.1f s for the checkpoint before to be written: the disk of %s is slower than "
                "checkpoints are asked for; raise checkpoint.every_steps or every_minutes",
                self._waited,
                self.folder,
            )
        self._waited = 0.0

    def _save(self, state: State, step: int, *, best: bool, initial: bool) -> None:
        self._saves += 1
        saved = _Saved(state, step, self._saves)
        wanted = {"latest": True, "best": best, "initial": initial}
        self._unwritten |= {name: saved for name, given in wanted.items() if given}
        self._write()

    def _write(self) -> None:
        """Write what is unwritten, the newest first: on it depends where the run goes on."""
        for name in ("latest", "best", "initial"):
            if (saved := self._unwritten.get(name)) is None:
                continue
            try:
                self._write_as(name, saved)
            except OSError as error:
                self._note(name, saved, error)
                continue
            del self._unwritten[name]
            if self._failed.pop(name, None):
                log.info("checkpoint %s: written at last, of step %d", self.folder / f"{name}.pt", saved.step)

    def _write_as(self, name: str, saved: _Saved) -> None:
        """Give the folder a file of this name; of the newest state under its step as well. OSError if that fails."""
        self._guard()
        if not self.folder.exists():
            self._when_gone()
        remove_partial(self.folder)
        if name == "latest" and not self._has(saved):
            path = self.folder / names.of_step(saved.step)
            files.make_way(path)
            write(path, saved.state, before=self._guard)
            self._whole = _Written(path, saved.step, saved.number)
        path = self.folder / f"{name}.pt"
        files.make_way(path)
        if self._whole is not None and self._has(saved):
            link(self._whole.path, path, before=self._guard)
        else:
            write(path, saved.state, before=self._guard)
        if name == "latest":
            self._prune(saved.step)

    def _has(self, saved: _Saved) -> bool:
        """Whether the newest file holds this state."""
        return self._whole is not None and self._whole.number == saved.number and self._whole.path.exists()

    def _note(self, name: str, saved: _Saved, error: OSError) -> None:
        """Keep in mind, and say, that this could not be written."""
        self._failed_at = time.monotonic()
        remedy = "free space or restore the folder"
        if name == "latest":
            path = self.folder / names.of_step(saved.step)
            message = f"cannot be written ({error}); {remedy}, then resume: the checkpoints before it are whole"
        elif name == "best":
            path = self.folder / names.BEST
            message = f"could not be written ({error}), of step {saved.step}; {remedy}: it is missing, or of before"
        else:
            path = self.folder / names.INITIAL
            message = (
                f"could not be written ({error}), and the state is in no other file; {remedy}, then start anew with "
                f"--overwrite, or go on without this file with --resume auto"
            )
        message = f"checkpoint {path}: {message}"
        known, self._failed[name] = self._failed.get(name), message
        if known != message and (name == "latest" or "latest" not in self._failed):
            log.warning("%s. Training goes on, and the writing is tried again", message)

    def _prune(self, step: int) -> None:
        """Remove the files of steps before this one, but for the last few. One that stays does no harm."""
        kept = [path for path in self.files() if (names.step_in(path) or 0) <= step and path.is_file()]
        for old in kept[self.keep :]:
            with contextlib.suppress(OSError):
                self._guard()
                old.unlink()

    def files(self) -> list[Path]:
        """The checkpoints by step, newest first."""
        there = (path for path in self.folder.glob(names.STEPS) if names.step_in(path) is not None)
        return sorted((path for path in there if path.is_symlink() or not path.is_dir()), reverse=True)

    def newest(self, read: Callable[[Path], State] = read) -> tuple[Path, State] | None:
        """The newest checkpoint that `read` takes, under any name. None if there is none at all.

        Damaged ones are named in a warning and passed over. UserError if there are only such.
        """
        looks = _Looks(read)
        for path in self.files():
            if looks.at(path):
                break
        for name in ("latest", "best"):
            looks.at(self.folder / f"{name}.pt")
        if looks.found is None:
            looks.at(self.folder / names.INITIAL)
        if looks.found is None and looks.damaged:
            raise UserError(*looks.damaged, f"{self.folder}: no whole checkpoint; start anew with --overwrite")
        for line in looks.damaged:
            log.warning("%s", line)
        return looks.found


class _Looks:
    """Looks at one checkpoint after the other for the newest that is whole. Each file is read once."""

    def __init__(self, read: Callable[[Path], State]) -> None:
        self.found: tuple[Path, State] | None = None
        self.damaged: list[str] = []
        self._read = read
        self._seen: set[tuple[int, int]] = set()

    def at(self, path: Path) -> bool:
        """Whether a file is whole. It is the one to take if it is newer than those before."""
        try:
            status = os.stat(path)
            if (identity := (status.st_dev, status.st_ino)) in self._seen:
                return False
            self._seen.add(identity)
            state = self._read(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except StorageError:
            raise
        except (UserError, OSError) as error:
            if isinstance(error, OSError) and files.may_pass(error):
                raise StorageError(f"checkpoint {path}: cannot be read ({error.strerror})") from None
            self.damaged.append(str(error))
            return False
        if self.found is None or state["progress"]["step"] > self.found[1]["progress"]["step"]:
            self.found = path, state
        return True


class _Written(NamedTuple):
    path: Path
    step: int
    number: int
    """Of the save."""


def remove_partial(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left. What cannot be removed is in nobody's way."""
    for path in folder.glob(names.PARTIAL):
        with contextlib.suppress(OSError):
            files.remove(path)


def link(source: Path, name: Path, before: Callable[[], None] = lambda: None) -> None:
    """Make `name` another name of `source`, in one step; a copy where the file system has no hard links.

    `before` is called before each change of the disk, and may raise.
    """
    before()
    partial = name.with_name(f"{name.name}.{secrets.token_hex(4)}.partial")
    try:
        os.link(source, partial)
    except OSError:
        with files.whole(name, before) as copy, files.open_regular(source) as original:
            shutil.copyfileobj(original, copy)
        return
    try:
        before()
        os.replace(partial, name)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()  # It is still there where `name` was the same file already.


def set_aside_after(
    folder: Path, step: int, read: Callable[[Path], State] = read, before: Callable[[], None] = lambda: None
) -> None:
    """Rename the checkpoints of later steps to `*.stale`: a run that goes on from `step` has another history.

    Left under their names they would pass for its newest and best. Nothing whole is deleted.
    `before` is called before each is renamed, and may raise.
    """
    remove_partial(folder)
    for path in folder.glob(names.STEPS):
        if (names.step_in(path) or 0) > step:
            _set_aside(path, before)
    for path in (folder / names.BEST, folder / names.LATEST):
        # The latest is another name of a step's file, but where that was removed.
        if path.is_file() and (path.name == names.BEST or path.stat().st_nlink == 1):
            try:
                if read(path)["progress"]["step"] > step:
                    _set_aside(path, before)
            except UserError as error:
                log.warning("%s", error)
                _set_aside(path, before)


def _set_aside(path: Path, before: Callable[[], None]) -> None:
    name, number = path.with_suffix(".pt.stale"), 1
    while name.exists():
        name, number = path.with_suffix(f".pt.stale{number}"), number + 1
    before()
    os.replace(path, name)
