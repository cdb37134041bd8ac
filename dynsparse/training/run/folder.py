"""A run's folder: whose it is, and where training goes on. Decided on rank 0 alone."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dynsparse import files
from dynsparse.config.schema import RunConfig
from dynsparse.errors import StorageError, UserError
from dynsparse.training.checkpoint import CheckpointFolder, link, set_aside_after
from dynsparse.training.run import lock
from dynsparse.training.saved import read_run
from dynsparse.training.sources import checkpoint_of

log = logging.getLogger(__name__)

_MARK = "# The resolved config of a dynsparse run.\n"
_LAUNCH = "launch.json"
_WRITTEN = (_LAUNCH, "config.yaml", "metrics.jsonl", "summary.json", "input.json")
"""In one step each: a kill may leave a partial file beside."""


def checkpoints_of(
    config: RunConfig, launch: str | None = None, guard: Callable[[], None] = lambda: None
) -> CheckpointFolder:
    """Its folder, should it vanish while the run goes on, comes back with the next save as the run's own.

    `guard` is asked before each change: see `RunLock.require`.
    """
    folder = config.folder / "checkpoints"
    return CheckpointFolder(folder, config.checkpoint.keep, when_gone=lambda: _mark(config, launch, guard), guard=guard)


class ResumePoint(NamedTuple):
    """Where a resumed run goes on."""

    path: Path
    state: dict[str, Any]


def begun_by(launch: str | None, folder: Path) -> bool:
    """Whether an earlier attempt of this launch (`torchrun.launch_id`) took the folder."""
    try:
        return launch is not None and files.json_object(files.read_bytes(folder / _LAUNCH)).get("id") == launch
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        if files.may_pass(error):
            raise StorageError(f"{folder}: cannot be read ({error.strerror}); set name= or runs=") from None
        return False


def find_resume_point(
    config: RunConfig, *, resume: str | None, overwrite: bool, launch: str | None = None, retry: bool = False
) -> ResumePoint | None:
    """The checkpoint to resume from, or None for a new run. Changes nothing.

    `resume` is "auto" (the newest whole checkpoint; a new run if there is
    none), a checkpoint's path, or a run's folder as in `checkpoint_of`. UserError rather than mixing two runs.

    In a later attempt of a launch that took the folder, `resume` and
    `overwrite` have had their effect: it goes on from what the launch has
    saved. An attempt that ended before it took the folder has changed nothing.
    `retry`: whether torchrun says that this is a later attempt, which it does
    after a fault, but not where machines join or leave.
    """
    folder = config.folder
    if begun_by(launch, folder):
        return _go_on(config, resume=resume, launch=launch, retry=retry)
    if launch is None and retry and resume != "auto" and _occupied(folder):
        raise UserError(f"{folder}: another attempt cannot tell whose it is; give torchrun an --rdzv-id")
    if resume == "auto":
        found = _newest(config)
        foreign = [name for name in ("config.yaml", "metrics.jsonl", "summary.json") if (folder / name).exists()]
        if found is None and foreign and not _holds_run(folder):
            raise UserError(f"{folder} holds a {foreign[0]} that is not of a dynsparse run; set name= or runs=")
        return found
    if resume is not None:
        path = checkpoint_of(resume)
        state = read_run(path)
        if _occupied(folder) and folder.resolve() not in path.resolve().parents:
            raise UserError(
                f"{folder} holds another run than checkpoint {path}; give this one a name of its own (name=...)"
            )
        return ResumePoint(path, state)
    if _occupied(folder) and not overwrite:
        raise UserError(f"{folder} exists; go on with --resume auto, replace it with --overwrite, or set name=")
    if _occupied(folder) and not _holds_run(folder):
        raise UserError(f"{folder} holds no run of dynsparse and is not replaced; set name= or runs=")
    return None


def _go_on(config: RunConfig, *, resume: str | None, launch: str | None, retry: bool) -> ResumePoint | None:
    """Where a later attempt of a launch goes on. It may have ended before its first checkpoint."""
    start = _newest(config)
    if start is None:
        return None if resume in (None, "auto") else ResumePoint(path := checkpoint_of(resume), read_run(path))
    if resume != "auto":
        if is_finished(config, start) and not retry:  # Most likely a new launch, under the id of an old one.
            raise UserError(
                f"{config.folder} holds a run that launch '{launch}' has finished; "
                "to begin another there, give it an --rdzv-id of its own"
            )
        log.info("launch '%s' has begun this run: going on with it, whatever the command line says", launch)
    return start


def _newest(config: RunConfig) -> ResumePoint | None:
    """The newest whole checkpoint; None where nothing has been trained. UserError for a run that has lost all of them:

    to begin anew would write over what is left of it.
    """
    found = checkpoints_of(config).newest(read_run)
    if found is not None and found[0].name != "initial.pt":
        return ResumePoint(*found)
    if trace := _trained(config.folder):
        raise UserError(
            f"{config.folder} holds a run that has trained ({trace}), and no checkpoint of it to go on from; bring its "
            f"checkpoints/ back, begin anew with --overwrite, or set name="
        )
    return found and ResumePoint(*found)


def _trained(folder: Path) -> str | None:
    """What tells that a run has trained there for an epoch or to its end; None if nothing does."""
    if (folder / "summary.json").exists():
        return "summary.json"
    if left := sorted((folder / "checkpoints").glob("*.pt.stale*")):
        return f"checkpoints/{left[0].name}"
    try:
        if any(b'"kind": "epoch"' in line for line in files.lines(folder / "metrics.jsonl")):
            return "metrics.jsonl"
    except OSError:
        pass
    return None


def is_finished(config: RunConfig, start: ResumePoint) -> bool:
    """Whether nothing is left to do: all epochs are behind `start`, and the summary stands."""
    return start.state["progress"]["epoch"] >= config.train.epochs and (config.folder / "summary.json").exists()


def require_writable(folder: Path) -> None:
    """Raise UserError where it can be told without writing that `folder` cannot be made or written to."""
    there = next(one for one in (folder, *folder.absolute().parents) if os.path.exists(one))
    if not os.path.isdir(there):
        raise UserError(f"{folder}: not a folder; set name= or runs=")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise UserError(f"{folder}: cannot be written (in {there}: permission denied); set runs= to a folder that can")


def take_folder(
    config: RunConfig,
    start: ResumePoint | None,
    *,
    overwrite: bool,
    launch: str | None = None,
    guard: Callable[[], None] = lambda: None,
) -> None:
    """Make the folder this run's, once all else has proved to be in order.

    `overwrite` removes the run that `find_resume_point` found there, and nothing but
    what a run writes; a resumed run says what has changed, and sets later
    checkpoints aside. Killed at any point, another attempt of the launch finds
    what it can go on from: that the folder is its own is noted when all that
    went before is out of the way, and before anything is added. `guard` is
    asked before each change: see `RunLock.require`.
    """
    folder = config.folder
    try:
        guard()
        if not (folder / "checkpoints").is_dir() and os.path.lexists(folder / "checkpoints"):
            raise UserError(f"{folder / 'checkpoints'}: is no folder; move it away, or set name=")
        if overwrite and start is None and _holds_run(folder):
            _remove_run(folder, guard)
        if start is not None:
            step = start.state["progress"]["step"]
            log.info("resuming from %s (step %d)", start.path, step)
            for line in differences(start.state["config"], config.as_dict()):
                log.warning("resuming with %s", line)
            set_aside_after(folder / "checkpoints", step, read_run, guard)
            _name_anew(start, folder / "checkpoints", guard)
        _mark(config, launch, guard)
    except OSError as error:
        kind = StorageError if files.may_pass(error) else UserError
        raise kind(f"{folder}: cannot be written ({error.strerror}); set runs= to a folder that can") from None


def _mark(config: RunConfig, launch: str | None, guard: Callable[[], None]) -> None:
    folder = config.folder
    guard()
    folder.mkdir(parents=True, exist_ok=True)
    for name in _WRITTEN:
        for left in files.left_by_writers(folder / name):
            if not files.is_folder(left):
                left.unlink(missing_ok=True)
    if launch is not None:
        files.write_whole(folder / _LAUNCH, f"{json.dumps({'id': launch})}\n".encode(), guard)
    elif not files.is_folder(folder / _LAUNCH):
        (folder / _LAUNCH).unlink(missing_ok=True)
    files.write_whole(folder / "config.yaml", (_MARK + config.as_yaml()).encode(), guard)
    (folder / "checkpoints").mkdir(exist_ok=True)


def _name_anew(start: ResumePoint, folder: Path, guard: Callable[[], None]) -> None:
    """Let latest.pt, and best.pt if it was set aside, be what they are where the run goes on."""
    if start.path.parent.resolve() != folder.resolve() or start.path.name == "latest.pt":
        return
    link(start.path, folder / "latest.pt", guard)
    progress, at_epoch_end = start.state["progress"], start.state["data"]["batch"] == 0
    selecting = progress["test_top1"] if progress["validation_top1"] is None else progress["validation_top1"]
    is_best = progress["best_top1"] is not None and progress["best_top1"] == selecting
    if at_epoch_end and is_best and not (folder / "best.pt").exists():
        link(start.path, folder / "best.pt", guard)


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Where two configs differ, as "train.epochs=20 (was 10)"."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [line for n in names for line in differences(old.get(n), new.get(n), f"{key}.{n}" if key else str(n))]
    return [] if old == new else [f"{key}={new} (was {old})"]


def _occupied(folder: Path) -> bool:
    try:
        if not folder.is_dir():
            return folder.exists()
        # These alone are of an attempt that holds the folder, or was killed as it took it.
        left = (lock.NAME, lock.OWNER, f"{lock.OWNER}.*.partial", lock.CLAIMS, "launch.json.*.partial")
        return any(not any(path.match(name) for name in left) for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); set name= or runs=") from None


def _holds_run(folder: Path) -> bool:
    try:
        with files.open_regular(folder / "config.yaml") as file:
            return file.read(len(_MARK)) == _MARK.encode()
    except OSError:
        return False


def _remove_run(folder: Path, guard: Callable[[], None]) -> None:
    """Remove what a run writes, but for the mark, which is replaced; whatever else lies in the folder stays."""
    for pattern in (
        _LAUNCH,
        *(f"{name}.*.partial" for name in _WRITTEN),
        "checkpoints/*.pt",
        "checkpoints/*.pt.stale*",
        "checkpoints/*.partial",
        "history.jsonl",
        "history.jsonl.damaged",
        "report.html",
        "metrics.jsonl",
        "metrics.jsonl.damaged",
        "summary.json",
        "input.json",
        "events.out.tfevents.*",
    ):
        for path in folder.glob(pattern):
            if not files.is_folder(path):  # Of somebody else.
                guard()
                path.unlink(missing_ok=True)
