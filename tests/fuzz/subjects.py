"""The small runs that are copied and damaged: made once, by the trainer itself."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz import children, commands
from tests.fuzz.limits import Limits
from tests.fuzz.scene import NAME, Subject, of_file
from tests.training import runs

_DSR = {"name": "dsr", "period": 3, "initial_threshold": 0.02, "target_moves": 30}
_MOMENTUM = {"optimizer": {"name": "sgd", "momentum": 0.9}}
_CNN: dict[str, Any] = {
    "model": {"name": "small_cnn", "channels": [4, 6]},
    "data": {"shape": [1, 6, 6]},
    "method": {"name": "rigl", "period": 3},
    "train": {"optimizer": {"name": "adamw"}},
}


@dataclass(frozen=True)
class Recipe:
    sections: dict[str, Any]
    end: str = "done"
    """End of the run that is copied: done, stopped or killed. The latter two are at a step in the second epoch."""


RECIPES = {
    "dsr-done": Recipe({"method": _DSR, "train": _MOMENTUM}),
    "dsr-stopped": Recipe({"method": _DSR, "train": _MOMENTUM}, "stopped"),
    "adam-cnn-killed": Recipe(_CNN, "killed"),
    "adam-cnn-done": Recipe(_CNN),
    "static-done": Recipe({"method": {"name": "static"}}),
    "dense-stopped": Recipe({"method": {"name": "dense"}}, "stopped"),
}
_END_AT = 14


def make(folder: Path) -> dict[str, Subject]:
    """Train all of them, each in a child."""
    return {name: _make(folder / name, name, recipe) for name, recipe in RECIPES.items()}


def _make(folder: Path, name: str, recipe: Recipe) -> Subject:
    settings = runs.config(runs="runs", name=NAME, checkpoint={"every_steps": 4, "keep": 3}, **recipe.sections)
    whole, ended = folder / "whole", folder / "ended"
    for home, how in ((whole, "done"), (ended, recipe.end)):
        home.mkdir(parents=True)
        (home / "F.yaml").write_text(settings.as_yaml())
        outcome = children.run(_training(home, how), folder, Limits(300, 4 << 30))
        expected = {"done": 0, "stopped": 75, "killed": 77}[how]
        assert outcome.code == expected, f"{name}, {how}: exit code {outcome.code}\n{outcome.err}"
    run = ended / "runs" / NAME
    summary = json.loads((whole / "runs" / NAME / "summary.json").read_text())
    return Subject(
        name,
        run,
        settings.as_yaml(),
        {key: summary[key] for key in ("mask_digest", "weight_digest")},
        frozenset(of_file(path) for path in run.glob("checkpoints/*.pt")),
    )


def _training(home: Path, how: str) -> Callable[[], object]:
    def act() -> int:
        if how != "done":
            _end_early(how)
        return commands.execute(home, ["dist_train.py", "--config", "F.yaml"])

    return act


def _end_early(how: str) -> None:
    """Make the first run in this process stop on request, or die, at a step."""
    from dynsparse.training.trainer import Trainer

    step = Trainer.train_step

    def counted(self: Trainer, *arguments: Any) -> Any:
        result = step(self, *arguments)
        if self.progress.step == _END_AT and how == "stopped":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.progress.step == _END_AT:
            assert self.saving.checkpoints is not None
            self.saving.checkpoints.wait()
            os._exit(77)
        return result

    Trainer.train_step = counted  # type: ignore[method-assign]
