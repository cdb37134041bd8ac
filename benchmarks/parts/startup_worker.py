"""Runs `dist_train.py` until its first training step is done, and notes where the time went.

Started by `benchmarks.startup`, in a process of its own: python -m benchmarks.parts.startup_worker FILE ARGUMENT...
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()
"""On a clock that all processes of the machine share."""


class Parts:
    """Seconds spent in each part, without those in parts within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._within: list[float] = []

    def note(self, owner: Any, attribute: str, part: str) -> None:
        """Count the calls of a function towards a part from now on."""
        setattr(owner, attribute, self.timed(getattr(owner, attribute), part))

    def timed(self, act: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._within.append(0.0)
            began = time.perf_counter()
            try:
                return act(*arguments, **options)
            finally:
                taken = time.perf_counter() - began
                self.seconds[part] = self.seconds.get(part, 0.0) + taken - self._within.pop()
                if self._within:
                    self._within[-1] += taken

        return call


def main() -> None:
    parts, file = Parts(), Path(sys.argv[1])
    import pipelines
    from dynsparse.cli import train  # Its imports are a part.
    from dynsparse.cli.actions import training as start
    from dynsparse.training import building, network, trainer
    from dynsparse.training.saving import Saving
    from dynsparse.training.trainer import Trainer

    parts.seconds["imports"] = time.perf_counter() - BEGAN
    # By itself, for it would count towards whatever comes to need it first.
    parts.timed(import_module, "torch._dynamo")("torch._dynamo")
    parts.note(train, "action_of", "config and checks")
    parts.note(train, "require", "config and checks")
    parts.note(pipelines, "build", "data")
    parts.note(building, "build_network", "network")
    parts.note(network, "MaskSet", "masks")
    parts.note(Trainer, "__init__", "trainer")
    parts.note(Trainer, "_settle", "settle")
    parts.note(start, "standard_observers", "observers")
    parts.note(Trainer, "_show", "observers")
    parts.note(Saving, "save", "initial checkpoint")
    parts.note(trainer, "_next", "first batch")
    step = parts.timed(Trainer.train_step, "first step")

    def first_step(*arguments: Any) -> None:
        step(*arguments)
        found = {"began": BEGAN, "ended": time.perf_counter(), "parts": parts.seconds}
        file.write_text(json.dumps(found))
        sys.exit(0)

    Trainer.train_step = first_step  # type: ignore[assignment,method-assign]
    train.main(sys.argv[2:], "dist_train.py")


if __name__ == "__main__":
    main()
