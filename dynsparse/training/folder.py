"""A run's folder: whose it is, and where training goes on. Decided on rank 0 alone."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from dynsparse.config import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.checkpoint import CheckpointFolder, read, set_aside_after

log = logging.getLogger(__name__)


def checkpoints_of(config: RunConfig) -> CheckpointFolder:
    return CheckpointFolder(config.folder / "checkpoints", config.checkpoint.keep)


def open_folder(config: RunConfig, *, resume: str | None, overwrite: bool) -> dict[str, Any] | None:
    """Make the folder ready and return the state to resume from, or None for a new run.

    `resume` is "auto" (the newest whole checkpoint; a new run if there is
    none) or a checkpoint's path. UserError rather than mixing two runs.
    """
    folder = config.folder
    saved = None
    if resume == "auto":
        found = checkpoints_of(config).newest()
        if found is not None:
            path, saved = found
            _go_on(config, path, saved)
    elif resume is not None:
        path = Path(resume)
        saved = read(path)
        if _occupied(folder) and folder.resolve() not in path.resolve().parents:
            raise UserError(
                f"{folder} holds another run than checkpoint {path}; give this one a name of its own (name=...)"
            )
        _go_on(config, path, saved)
    elif _occupied(folder):
        if not overwrite:
            raise UserError(
                f"{folder} exists; continue it with --resume auto, replace it with --overwrite, or set name="
            )
        _remove(folder)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config.as_yaml())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); set runs= to a folder that can") from None
    return saved


def _go_on(config: RunConfig, path: Path, saved: dict[str, Any]) -> None:
    step = saved["progress"]["step"]
    log.info("resuming from %s (step %d)", path, step)
    for line in differences(saved["config"], config.as_dict()):
        log.warning("resuming with %s", line)
    set_aside_after(config.folder / "checkpoints", step)


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Where two configs differ, as "train.epochs=20 (was 10)"."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [line for n in names for line in differences(old.get(n), new.get(n), f"{key}.{n}" if key else str(n))]
    return [] if old == new else [f"{key}={new} (was {old})"]


def _occupied(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _remove(folder: Path) -> None:
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} holds no run (no config.yaml in it) and is not removed; set name= or runs=")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be removed ({error}); set name= or runs=") from None
