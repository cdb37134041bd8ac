"""Find the file that a user means by CKPT: a checkpoint, or one of a run's folder.

A folder that may not be read is no error here, as it would be with Path.is_dir. The reader tells of it in one line.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any

from dynsparse.errors import StorageError, UserError
from dynsparse.training.checkpoint.folder import CheckpointFolder
from dynsparse.training.checkpoint.reading import read_run
from dynsparse.training.run import names

log = logging.getLogger(__name__)


def checkpoint_of(source: str) -> Path:
    """Return the checkpoint to resume from, given a file, a run's folder, its checkpoints/, or the folder + `_initial`.

    A folder gives its latest; where that is damaged, the newest valid one. UserError if there is none.
    """
    path = _run_of(source)
    if isdir(path):
        return _latest(path / names.CHECKPOINTS)
    run = path.with_name(path.name.removesuffix("_initial"))
    if not exists(path) and run != path:
        return run / names.CHECKPOINTS / names.INITIAL
    return path


def result_of(source: str) -> Path:
    """Return the checkpoint to use, given the same as for `checkpoint_of`. A folder gives its best.

    It gives its latest where no epoch has been the best yet. UserError if there is none.
    """
    best = _run_of(source) / names.CHECKPOINTS / names.BEST
    return best if isfile(best) else checkpoint_of(source)


def how_chosen(path: Path, state: Mapping[str, Any]) -> str:
    """Say which checkpoint this is: "runs/x/checkpoints/best.pt: epoch 7 of 10, the best in validation"."""
    progress, epochs = state["progress"], state["config"]["train"].get("epochs", "?")
    words = f"{path}: epoch {progress['epoch']} of {epochs}, step {progress['step']:,}"
    on = "on the test data" if progress.get("validation_top1") is None else "in validation"
    by = ", by the average of its weights" if progress.get("best_by") == "ema" else ""
    return f"{words}, the best {on} up to then{by}" if path.name == names.BEST else words


def _run_of(source: str) -> Path:
    """Return the run's folder where `source` is its checkpoints/, else `source` itself. UserError if it is empty."""
    if not source:
        raise UserError("CKPT is empty; name a checkpoint, or a run's folder, such as runs/digits_dsr")
    path = Path(source)
    if isdir(path) and path.absolute().name == names.CHECKPOINTS and not isdir(path / names.CHECKPOINTS):
        return path.parent if path.name else path.absolute().parent  # "." has no name.
    return path


def _latest(folder: Path) -> Path:
    latest = folder / names.LATEST
    try:
        read_run(latest)
    except StorageError:
        raise
    except UserError:
        found = CheckpointFolder(folder, keep=1).newest(read_run)
        if found is None:
            return latest
        log.warning("%s is damaged or missing; %s is taken instead", latest, found[0])
        return found[0]
    return latest
