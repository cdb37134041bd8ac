"""Run `dist_train.py` until its first training step is done, and note where the time went.

Started by `benchmarks.startup`, in a process of its own: python -m benchmarks.parts.startup_worker FILE ARGUMENT...
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.harness.calls import Watch

BEGAN = time.perf_counter()
"""Time on a clock that all processes of the machine share."""


def main() -> None:
    parts, file = Watch(), Path(sys.argv[1])
    import pipelines
    from dynsparse.cli import train  # Its imports are a part.
    from dynsparse.cli.actions import held_run as start
    from dynsparse.training import building, network, trainer
    from dynsparse.training.saving import Saving
    from dynsparse.training.trainer import Trainer

    imports = time.perf_counter() - BEGAN
    # By itself, for it would count towards whatever comes to need it first.
    parts.timed(import_module, "torch._dynamo")("torch._dynamo")
    parts.on(train, "action_of", "config and checks")
    parts.on(train, "require", "config and checks")
    parts.on(pipelines, "build", "data")
    parts.on(building, "build_network", "network")
    parts.on(network, "MaskSet", "masks")
    parts.on(Trainer, "__init__", "trainer")
    parts.on(Trainer, "settle")
    parts.on(start, "standard_observers", "observers")
    parts.on(Trainer, "_show", "observers")
    parts.on(Saving, "save", "initial checkpoint")
    parts.on(trainer, "_next", "first batch")
    step = parts.timed(Trainer.train_step, "first step")

    def first_step(*arguments: Any) -> None:
        step(*arguments)
        seconds = {"imports": imports, **{part: own for part, (own,) in parts.own.items()}}
        file.write_text(json.dumps({"began": BEGAN, "ended": time.perf_counter(), "parts": seconds}))
        sys.exit(0)

    Trainer.train_step = first_step  # type: ignore[assignment,method-assign]
    train.main(sys.argv[2:], "dist_train.py")


if __name__ == "__main__":
    main()
