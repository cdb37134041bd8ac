"""Checkpoints: files that are whole or not there, and that know when they are damaged."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.training.archive import save_deflated
from dynsparse.training.saving import InBackground

log = logging.getLogger(__name__)

#: 2: explored positions of inactive units only, see `MaskSet.state_dict`; deflated.
FORMAT = 2
_READABLE = (1, 2)
_STEP_FILE = re.compile(r"step-(\d{9})\.pt")

State = dict[str, Any]


def write(path: Path, state: State) -> None:
    """Save plain data and CPU tensors so that `path` never holds half a file.

    Written beside, flushed to disk, renamed. Raises OSError (a full disk, a
    vanished folder) with whatever was at `path` untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            save_deflated({"format": FORMAT, "sha256": checksum(state), "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _flush_folder(path.parent)


def read(path: Path) -> State:
    """Load a checkpoint onto the CPU. UserError if it is absent, damaged or of another kind.

    Nothing in the file is executed (`weights_only=True`).
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path}: does not exist; give a file from a run's checkpoints/ folder") from None
    except IsADirectoryError:
        raise UserError(f"checkpoint {path}: is a folder; give a file in it, or --resume auto") from None
    except Exception:  # noqa: BLE001 - damage shows as any error at all
        # torch's own words tell of archives and pickles, and advise to load what is not to be trusted.
        raise UserError(
            f"checkpoint {path}: damaged or no checkpoint; use an earlier one of the run, or another"
        ) from None
    if not isinstance(content, dict) or "state" not in content or "sha256" not in content:
        raise UserError(f"checkpoint {path}: not written by dynsparse; give a file from a run's checkpoints/ folder")
    if content.get("format") not in _READABLE:
        raise UserError(
            f"checkpoint {path}: format {content.get('format')}, this version reads {_READABLE[0]} to {FORMAT}; "
            f"use the version of dynsparse that wrote it"
        )
    if checksum(content["state"]) != content["sha256"]:
        raise UserError(f"checkpoint {path}: damaged (its checksum differs); use an earlier one")
    state: State = content["state"]
    return state


def is_whole(path: Path) -> bool:
    """Whether `read` succeeds."""
    try:
        read(path)
    except UserError:
        return False
    return True


def checksum(state: Any) -> str:
    """SHA-256 over plain data and tensors: keys, types, shapes, values, in order."""
    digest = hashlib.sha256()
    for piece in _pieces(state):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {list(value.shape)}".encode()
        flat = value.detach().cpu().contiguous().view(-1)
        yield flat.view(torch.uint8).numpy().data if flat.numel() else b""
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key, item in value.items():
            yield repr(key).encode()
            yield from _pieces(item)
    elif isinstance(value, (list, tuple)):
        yield f"sequence {len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    else:
        yield f"{type(value).__name__} {value!r}".encode()


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system allows to ask for it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


class CheckpointFolder:
    """The checkpoints of a run: `initial.pt`, the last `keep` as `step-*.pt`, `latest.pt`, `best.pt`.

    One save at a time is written, in the background if asked so; nothing else may write to the folder meanwhile.
    """

    def __init__(self, folder: Path, keep: int, when_gone: Callable[[], None] = lambda: None) -> None:
        """`when_gone` is called before a save that finds no folder; it may raise OSError."""
        self._when_gone = when_gone
        self.folder = folder
        self.keep = keep
        self._failed: dict[str, str] = {}
        self._writing = InBackground()
        self._waited = 0.0
        self._said_slow = False

    @property
    def failure(self) -> str | None:
        """Why the newest save, or that of the best state, failed, if it did and no later one mended it.

        Of the saves that are written: `wait` first.
        """
        return next(iter(self._failed.values()), None)

    def save(self, state: State, step: int, *, best: bool = False, initial: bool = False) -> None:
        """Save the state after `step`. A failure is kept in `failure` and logged; older files stay as they were."""
        self.begin(lambda: state, step, best=best, initial=initial)
        self.wait()

    def begin(self, content: Callable[[], State], step: int, *, best: bool = False, initial: bool = False) -> None:
        """As `save`, in the background: there `content` is called, which must need nothing that training changes."""
        self._say_if_slow()
        self._writing.start(lambda: self._save(content(), step, best=best, initial=initial))

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
        path = self.folder / f"step-{step:09d}.pt"
        try:
            if not self.folder.exists():
                self._when_gone()
            remove_partial(self.folder)
            write(path, state)
            if initial:
                link(path, self.folder / "initial.pt")
            link(path, self.folder / "latest.pt")
            if best:
                link(path, self.folder / "best.pt")
            for old in self.files()[self.keep :]:
                old.unlink()
        except OSError as error:
            message = (
                f"checkpoint {path}: cannot be written ({error}); free space or restore the folder, "
                f"then resume: the checkpoints before it are whole"
            )
            self._failed["latest"] = message
            if best:
                self._failed["best"] = message
            if initial:
                # Later saves hold other states.
                self._failed["initial"] = (
                    f"checkpoint {self.folder / 'initial.pt'}: could not be written ({error}), and the state is gone; "
                    f"free space or restore the folder, then start anew with --overwrite, or go on without this file "
                    f"with --resume auto"
                )
            log.warning("%s. Training goes on", message)
        else:
            self._failed.pop("latest", None)
            if best:
                self._failed.pop("best", None)

    def files(self) -> list[Path]:
        """The checkpoints by step, newest first."""
        return sorted((p for p in self.folder.glob("step-*.pt") if _STEP_FILE.fullmatch(p.name)), reverse=True)

    def newest(self) -> tuple[Path, State] | None:
        """The newest whole checkpoint; damaged ones are named in a warning and passed over. None if there is none.

        UserError if there are only damaged ones.
        """
        damaged = []
        for path in self.files():
            try:
                return path, read(path)
            except UserError as error:
                damaged.append(str(error))
                log.warning("%s", error)
        if damaged:
            raise UserError(*damaged, f"{self.folder}: no whole checkpoint; start anew with --overwrite")
        return None


def remove_partial(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left."""
    for path in folder.glob("*.partial"):
        path.unlink(missing_ok=True)


def link(source: Path, name: Path) -> None:
    """Make `name` another name of `source`, in one step; a copy where the file system has no hard links."""
    partial = name.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    os.replace(partial, name)


def set_aside_after(folder: Path, step: int) -> None:
    """Rename the checkpoints of later steps to `*.stale`: a run that goes on from `step` has another history.

    Left under their names they would pass for its newest and best. Nothing whole is deleted.
    """
    remove_partial(folder)
    for path in folder.glob("step-*.pt"):
        match = _STEP_FILE.fullmatch(path.name)
        if match and int(match[1]) > step:
            _set_aside(path)
    best = folder / "best.pt"
    if best.exists():
        try:
            if read(best)["progress"]["step"] > step:
                _set_aside(best)
        except UserError as error:
            log.warning("%s", error)
            _set_aside(best)


def _set_aside(path: Path) -> None:
    name, number = path.with_suffix(".pt.stale"), 1
    while name.exists():
        name, number = path.with_suffix(f".pt.stale{number}"), number + 1
    os.replace(path, name)
