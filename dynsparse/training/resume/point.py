"""Find where a run resumes: at a checkpoint, or nowhere for a new run. Decided on rank 0 alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dynsparse import files
from dynsparse.config.schema import RunConfig
from dynsparse.errors import StorageError, UserError
from dynsparse.training.checkpoint import checkpoint_of, checksum, read_run
from dynsparse.training.ending import early_end
from dynsparse.training.progress import Progress
from dynsparse.training.resume.ownership import begun_by, checkpoints_of, holds_run, is_occupied, origin_of
from dynsparse.training.run import names

log = logging.getLogger(__name__)


class ResumePoint(NamedTuple):
    """The checkpoint that a run resumes from."""

    path: Path
    state: dict[str, Any]


def find_resume_point(
    config: RunConfig, *, resume: str | None, overwrite: bool, launch: str | None = None, retry: bool = False
) -> ResumePoint | None:
    """Return the checkpoint to resume from, or None for a new run. Changes nothing.

    `resume` is "auto", a checkpoint's path, or a run's folder as in `checkpoint_of`. "auto" takes the newest valid
    checkpoint, and begins a new run if there is none. A checkpoint of another place begins a run of its own here; the
    same one again resumes that run. UserError rather than mixing two runs.

    A later attempt of a launch that took the folder resumes from what the launch has saved: `resume` and `overwrite`
    had their effect in the attempt that took it. An attempt that ended before it took the folder has changed nothing.
    `retry` says that torchrun calls this a later attempt. It does so after a fault, but not where machines join or
    leave.
    """
    folder = config.folder
    if begun_by(launch, folder):
        return _in_launch(config, resume=resume, launch=launch, retry=retry)
    if launch is None and retry and resume != "auto" and is_occupied(folder):
        raise UserError(f"{folder}: another attempt cannot tell whose it is; give torchrun an --rdzv-id")
    if resume == "auto":
        return _auto(config)
    if resume is not None:
        return _named(config, resume)
    if is_occupied(folder) and not overwrite:
        raise UserError(f"{folder} exists; resume it with --resume auto, replace it with --overwrite, or set name=")
    if is_occupied(folder) and not holds_run(folder):
        raise UserError(f"{folder} holds no run of dynsparse and is not replaced; set name= or runs=")
    return None


def _auto(config: RunConfig) -> ResumePoint | None:
    found, folder = _newest(config), config.folder
    foreign = [name for name in (names.CONFIG, names.METRICS, names.SUMMARY) if (folder / name).exists()]
    if found is None and foreign and not holds_run(folder):
        raise UserError(f"{folder} holds a {foreign[0]} that is not of a dynsparse run; set name= or runs=")
    return found


def _named(config: RunConfig, resume: str) -> ResumePoint:
    """Return the checkpoint that is named; the newest of the folder where the run goes on from that one already."""
    path, folder = checkpoint_of(resume), config.folder
    named = ResumePoint(path, read_run(path))
    if not is_occupied(folder) or folder.resolve() in path.resolve().parents:
        return named
    if origin_of(folder) != checksum(named.state):
        raise UserError(
            f"{folder} holds another run than checkpoint {path}; give this one a name of its own (name=...)"
        )
    if not (folder / names.CHECKPOINTS / names.LATEST).exists() and _trained(folder) is None:
        return named  # A start was killed as it took the folder.
    log.info("%s goes on from %s already: resuming it", folder, path)
    return _newest(config) or named


def _in_launch(config: RunConfig, *, resume: str | None, launch: str | None, retry: bool) -> ResumePoint | None:
    """Return where a later attempt of a launch resumes. The one before may have ended before its first checkpoint."""
    point = _newest(config)
    if point is None:
        return None if resume in (None, "auto") else ResumePoint(path := checkpoint_of(resume), read_run(path))
    if resume != "auto":
        if is_finished(config, point) and not retry:  # Most likely a new launch, under the id of an old one.
            raise UserError(
                f"{config.folder} holds a run that launch '{launch}' has finished; "
                "to begin another there, give it an --rdzv-id of its own"
            )
        log.info("launch '%s' has begun this run: resuming it, whatever the command line says", launch)
    return point


def _newest(config: RunConfig) -> ResumePoint | None:
    """Return the newest valid checkpoint; None where nothing has been trained.

    UserError for a run that has lost all of them: to begin anew would write over what is left of it.
    """
    found = checkpoints_of(config).newest(read_run)
    if found is not None and found[0].name != names.INITIAL:
        return ResumePoint(*found)
    folder, begun = config.folder, -1 if found is None else found[1]["progress"]["step"]
    taken = names.ORIGIN if origin_of(folder) is not None else None
    if trace := _trained(folder, begun) or taken:
        raise UserError(
            f"{folder} holds a run that has trained ({trace}), and no checkpoint of it to resume from; bring "
            f"its {names.CHECKPOINTS}/ back, begin anew with --overwrite, or set name="
        )
    return found and ResumePoint(*found)


def _trained(folder: Path, begun: int = -1) -> str | None:
    """Name a file that shows that a run has trained there for an epoch, to its end, or beyond the step `begun`.

    None if none does.
    """
    if (folder / names.SUMMARY).exists():
        return names.SUMMARY
    if left := sorted((folder / names.CHECKPOINTS).glob(names.STALE)):
        return f"{names.CHECKPOINTS}/{left[0].name}"
    if _any_line(folder / names.METRICS, lambda line: b'"kind": "epoch"' in line):
        return names.METRICS
    return names.HISTORY if _any_line(folder / names.HISTORY, lambda line: _has_resumed(line, begun)) else None


def _any_line(path: Path, is_one: Callable[[bytes], bool]) -> bool:
    try:
        return any(map(is_one, files.lines(path)))
    except OSError:
        return False


def _has_resumed(line: bytes, begun: int) -> bool:
    """Tell whether a line of the history tells of a start from a checkpoint of a later step than `begun`."""
    try:
        record = files.json_object(line)
    except ValueError:
        return False
    step = record.get("step")
    return record.get("kind") == "start" and record.get("resumed") is True and isinstance(step, int) and step > begun


def is_finished(config: RunConfig, point: ResumePoint) -> bool:
    """Tell whether nothing is left to do: `point` is the last of its run, and its summary says that it is done."""
    progress = Progress.model_validate(point.state["progress"])
    is_last = progress.epoch >= config.train.epochs or (
        point.state["data"]["batch"] == 0 and early_end(config.train, progress) is not None
    )
    return is_last and _is_done(config.folder, progress.step)


def _is_done(folder: Path, step: int) -> bool:
    """Tell whether the summary says that the run has ended well after this step."""
    try:
        summary = files.json_object(files.read_bytes(folder / names.SUMMARY))
    except OSError as error:
        if files.may_pass(error):
            raise StorageError(f"{folder}: cannot be read ({error.strerror}); set name= or runs=") from None
        return False
    except ValueError:
        return False
    return (summary.get("status"), summary.get("steps")) == ("done", step)
