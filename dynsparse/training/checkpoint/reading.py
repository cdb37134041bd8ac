"""A run's checkpoint, read and validated."""

from __future__ import annotations

from pathlib import Path

from dynsparse.errors import UserError
from dynsparse.training.checkpoint.agreement import first_problem
from dynsparse.training.checkpoint.format import State, read
from dynsparse.training.checkpoint.schema import SavedRun
from dynsparse.training.run import names
from pipelines.common.text import one_line

_PARTS = [name for name, field in SavedRun.model_fields.items() if field.is_required()]


def read_run(path: Path) -> State:
    """Read a checkpoint as `read` does. UserError unless it holds a run whose parts agree with each other."""
    state = read(path)
    if missing := [part for part in _PARTS if part not in state]:
        raise UserError(f"checkpoint {path}: lacks {', '.join(missing)}; give a file from a run's checkpoints/ folder")
    if problem := first_problem(state):
        raise UserError(one_line(f"checkpoint {path}: {problem}; use an earlier one of the run"))
    named, step = names.step_in(path), state["progress"]["step"]
    if named not in (None, step):
        raise UserError(f"checkpoint {path}: holds step {step}, not what its name says; use another one of the run")
    return state
