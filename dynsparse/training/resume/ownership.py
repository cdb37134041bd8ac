"""A run's folder: whose it is, and the marks that say so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from dynsparse import files
from dynsparse.config.own_method import source_of
from dynsparse.config.schema import RunConfig
from dynsparse.errors import StorageError, UserError
from dynsparse.training.checkpoint import CheckpointFolder
from dynsparse.training.run import names

_MARK = "# The resolved config of a dynsparse run.\n"
"""First line of a run's config.yaml."""


def checkpoints_of(
    config: RunConfig, launch: str | None = None, guard: Callable[[], None] = lambda: None
) -> CheckpointFolder:
    """Return the checkpoints of the config's run.

    Should the folder vanish during training, the next save makes it anew, as the run's own. `guard` is called before
    each change: see `RunLock.require`.
    """
    return CheckpointFolder(
        config.folder / names.CHECKPOINTS,
        config.checkpoint.keep,
        when_gone=lambda: mark(config, launch, guard),
        guard=guard,
    )


def mark(config: RunConfig, launch: str | None, guard: Callable[[], None]) -> None:
    """Make the folder this run's: write who launched it and its config, and make the folder of checkpoints."""
    folder = config.folder
    guard()
    folder.mkdir(parents=True, exist_ok=True)
    for name in names.WRITTEN_WHOLE:
        for left in files.left_by_writers(folder / name):
            _unlink(left)
    if launch is not None:
        files.write_whole(folder / names.LAUNCH, f"{json.dumps({'id': launch})}\n".encode(), guard)
    else:
        _unlink(folder / names.LAUNCH)
    files.write_whole(folder / names.CONFIG, (_MARK + _keeping_method(config, guard).as_yaml()).encode(), guard)
    (folder / names.CHECKPOINTS).mkdir(exist_ok=True)


def _keeping_method(config: RunConfig, guard: Callable[[], None]) -> RunConfig:
    """Copy the file of a method of one's own into the run's folder. Returns the config that names the copy."""
    source = source_of(config.method)
    if source is None:
        return config
    files.write_whole(config.folder / names.METHOD, source, guard)
    return config.model_copy(update={"method": config.method.model_copy(update={"path": names.METHOD})})


def _unlink(path: Path) -> None:
    """Remove a file, if there is one. A folder of that name is somebody else's."""
    if not files.is_folder(path):
        path.unlink(missing_ok=True)


def remove_run(folder: Path, guard: Callable[[], None]) -> None:
    """Remove what a run writes. The mark stays, to be replaced, and so does whatever else lies in the folder."""
    for pattern in names.OVERWRITTEN:
        for path in folder.glob(pattern):
            if not files.is_folder(path):
                guard()
                path.unlink(missing_ok=True)


def begun_by(launch: str | None, folder: Path) -> bool:
    """Tell whether an earlier attempt of this launch (`torchrun.launch_id`) took the folder."""
    try:
        return launch is not None and files.json_object(files.read_bytes(folder / names.LAUNCH)).get("id") == launch
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        if files.may_pass(error):
            raise StorageError(f"{folder}: cannot be read ({error.strerror}); set name= or runs=") from None
        return False


def note_origin(folder: Path, checksum: str, guard: Callable[[], None]) -> None:
    """Write down the checksum of the checkpoint, of another place, that a run takes the folder to go on from."""
    files.write_whole(folder / names.ORIGIN, f"{json.dumps({'sha256': checksum})}\n".encode(), guard)


def origin_of(folder: Path) -> str | None:
    """Return the checksum of the checkpoint that the folder was taken to go on from; None if there was none."""
    try:
        found = files.json_object(files.read_bytes(folder / names.ORIGIN)).get("sha256")
    except ValueError:
        return None
    except OSError as error:
        if files.may_pass(error):
            raise StorageError(f"{folder}: cannot be read ({error.strerror}); set name= or runs=") from None
        return None
    return found if isinstance(found, str) else None


def is_occupied(folder: Path) -> bool:
    """Tell whether anything stands there but what an attempt leaves that holds the folder, or died as it took it."""
    try:
        if not folder.is_dir():
            return folder.exists()
        return any(not any(path.match(name) for name in names.FROM_START) for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); set name= or runs=") from None


def holds_run(folder: Path) -> bool:
    """Tell whether the folder has the mark of a run of dynsparse, or one has begun to take it."""
    if origin_of(folder) is not None:
        return True
    try:
        with files.open_regular(folder / names.CONFIG) as file:
            return file.read(len(_MARK)) == _MARK.encode()
    except OSError:
        return False


def require_writable(folder: Path) -> None:
    """Raise UserError if it is clear, without writing, that `folder` cannot be made or written to."""
    there = next(one for one in (folder, *folder.absolute().parents) if os.path.exists(one))
    if not os.path.isdir(there):
        raise UserError(f"{folder}: not a folder; set name= or runs=")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise UserError(f"{folder}: cannot be written (in {there}: permission denied); set runs= to a folder that can")
