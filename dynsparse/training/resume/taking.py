"""Make a folder this run's, once all else has proved to be in order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynsparse import files
from dynsparse.config.schema import RunConfig
from dynsparse.errors import StorageError, UserError
from dynsparse.training.checkpoint import checksum, link, read_run, set_aside_after
from dynsparse.training.older import as_of_now
from dynsparse.training.progress import is_of_now
from dynsparse.training.resume.ownership import holds_run, mark, note_origin, remove_run
from dynsparse.training.resume.point import ResumePoint
from dynsparse.training.run import names

log = logging.getLogger(__name__)


def take_folder(
    config: RunConfig,
    point: ResumePoint | None,
    *,
    overwrite: bool,
    launch: str | None = None,
    guard: Callable[[], None] = lambda: None,
) -> None:
    """Make the config's folder this run's.

    `overwrite` removes the run that `find_resume_point` found there, and nothing but what a run writes. A resumed run
    says what has changed, and sets later checkpoints aside. `guard` is called before each change: see
    `RunLock.require`.

    If the process is killed at any point, another attempt of the launch finds what it can resume from. To that end,
    the folder is marked after all that went before is out of the way, and before anything is added.
    """
    folder = config.folder
    try:
        guard()
        _require_place_for_checkpoints(folder)
        if overwrite and point is None and holds_run(folder):
            remove_run(folder, guard)
        if point is not None:
            _leave_later_history(config, point, guard)
        mark(config, launch, guard)
    except OSError as error:
        kind = StorageError if files.may_pass(error) else UserError
        raise kind(f"{folder}: cannot be written ({error.strerror}); set runs= to a folder that can") from None


def _require_place_for_checkpoints(folder: Path) -> None:
    path = folder / names.CHECKPOINTS
    if not path.is_dir() and os.path.lexists(path):
        raise UserError(f"{path}: is no folder; move it away, or set name=")


def _leave_later_history(config: RunConfig, point: ResumePoint, guard: Callable[[], None]) -> None:
    """Say what a resume changes, and set aside the checkpoints of what it trains anew."""
    step = point.state["progress"]["step"]
    log.info("resuming from %s (step %d)", point.path, step)
    for line in differences(as_of_now(point.state["config"]), as_of_now(config.as_dict())):
        log.warning("resuming with %s", line)
    set_aside_after(config.folder / names.CHECKPOINTS, step, read_run, guard)
    if _is_within(point, config.folder / names.CHECKPOINTS):
        _name_anew(point, config.folder / names.CHECKPOINTS, guard)
    else:
        _bring(point, config.folder, guard)


def _is_within(point: ResumePoint, checkpoints: Path) -> bool:
    return point.path.parent.resolve() == checkpoints.resolve()


def _bring(point: ResumePoint, folder: Path, guard: Callable[[], None]) -> None:
    """Give the folder a checkpoint of another place, and the best of its run. Its run is never without one.

    If a start is killed here, the same command finds the origin, which comes first, but no latest.pt, which comes last.
    """
    checkpoints, best = folder / names.CHECKPOINTS, _best_beside(point)
    guard()
    folder.mkdir(parents=True, exist_ok=True)
    note_origin(folder, checksum(point.state), guard)
    checkpoints.mkdir(exist_ok=True)
    link(point.path.resolve(), checkpoints / names.of_step(point.state["progress"]["step"]), guard)
    if best is not None:
        link(best, checkpoints / names.BEST, guard)
    link(point.path.resolve(), checkpoints / names.LATEST, guard)


def _best_beside(point: ResumePoint) -> Path | None:
    """Return the file of the best epoch up to the checkpoint; None if neither its folder nor itself holds it."""
    if _is_best(point.state):
        return point.path.resolve()
    best, progress = point.path.with_name(names.BEST), point.state["progress"]
    if not best.is_file() or progress["best_top1"] is None:
        return None
    try:
        theirs = read_run(best)["progress"]
    except StorageError:
        raise
    except UserError as error:
        log.warning("%s", error)
        return None
    is_its = (theirs["step"] <= progress["step"]) and theirs["best_top1"] == progress["best_top1"]
    return best.resolve() if is_its else None


def _name_anew(point: ResumePoint, folder: Path, guard: Callable[[], None]) -> None:
    """Let latest.pt, and best.pt if it was set aside, be what they are where the run resumes."""
    if point.path.name == names.LATEST:
        return
    link(point.path, folder / names.LATEST, guard)
    if _is_best(point.state) and not (folder / names.BEST).exists():
        link(point.path, folder / names.BEST, guard)


def _is_best(state: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint was made at the end of the best epoch up to then."""
    progress, at_epoch_end = state["progress"], state["data"]["batch"] == 0
    of = "ema_" if progress.get("best_by") == "ema" else ""  # Older checkpoints do not say.
    on = "test" if progress["validation_top1"] is None else "validation"
    selecting = progress.get(f"{of}{on}_top1")
    is_best = progress["best_top1"] is not None and progress["best_top1"] == selecting
    return at_epoch_end and is_best and is_of_now(progress)


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Return where two configs differ, as "train.epochs=20 (was 10)"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(name for name in new if name not in old)]
        return [line for n in keys for line in differences(old.get(n), new.get(n), f"{key}.{n}" if key else str(n))]
    return [] if old == new else [f"{key}={new} (was {old})"]
