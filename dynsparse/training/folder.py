"""A run's folder: whose it is, and where training goes on. Decided on rank 0 alone."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from dynsparse.config import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.checkpoint import CheckpointFolder, read, set_aside_after
from dynsparse.training.state import RunState

log = logging.getLogger(__name__)


def checkpoints_of(config: RunConfig) -> CheckpointFolder:
    return CheckpointFolder(config.folder / "checkpoints", config.checkpoint.keep)


def find_start(config: RunConfig, *, resume: str | None, overwrite: bool) -> dict[str, Any] | None:
    """The state to resume from, or None for a new run. Changes nothing.

    `resume` is "auto" (the newest whole checkpoint; a new run if there is
    none) or a checkpoint's path. UserError rather than mixing two runs.
    """
    folder = config.folder
    if resume == "auto":
        found = checkpoints_of(config).newest()
        if found is None:
            return None
        path, saved = found
    elif resume is not None:
        path, saved = Path(resume), read_run(Path(resume))
        if _occupied(folder) and folder.resolve() not in path.resolve().parents:
            raise UserError(
                f"{folder} holds another run than checkpoint {path}; give this one a name of its own (name=...)"
            )
    else:
        if _occupied(folder) and not overwrite:
            raise UserError(f"{folder} exists; go on with --resume auto, replace it with --overwrite, or set name=")
        if _occupied(folder) and not (folder / "config.yaml").is_file():
            raise UserError(f"{folder} holds no run (no config.yaml in it) and is not removed; set name= or runs=")
        return None
    log.info("resuming from %s (step %d)", path, saved["progress"]["step"])
    for line in differences(saved["config"], config.as_dict()):
        log.warning("resuming with %s", line)
    return saved


def read_run(path: Path) -> dict[str, Any]:
    """`checkpoint.read`, and UserError unless the file holds a run."""
    saved = read(path)
    missing = [part for part in RunState.PARTS if part not in saved]
    if missing:
        raise UserError(f"checkpoint {path}: lacks {', '.join(missing)}; give a file from a run's checkpoints/ folder")
    return saved


def take_folder(config: RunConfig, *, resumed_step: int | None, overwrite: bool) -> None:
    """Make the folder this run's, once all else has proved to be in order.

    `overwrite` removes the run that `find_start` found there; a resumed run
    (`resumed_step` not None) sets later checkpoints aside.
    """
    folder = config.folder
    try:
        if overwrite and resumed_step is None and folder.exists():
            shutil.rmtree(folder)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config.as_yaml())
        if resumed_step is not None:
            set_aside_after(folder / "checkpoints", resumed_step)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); set runs= to a folder that can") from None


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Where two configs differ, as "train.epochs=20 (was 10)"."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [line for n in names for line in differences(old.get(n), new.get(n), f"{key}.{n}" if key else str(n))]
    return [] if old == new else [f"{key}={new} (was {old})"]


def _occupied(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
