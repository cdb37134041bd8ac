"""The commands that run on a damaged run, and what each may change."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.scene import NAME, OTHER, Scene

RUN = f"runs/{NAME}"


@dataclass(frozen=True)
class Command:
    name: str
    arguments: Callable[[Random, Scene], list[str]]
    """Its command line, less `python`."""
    writes: tuple[str, ...] | None = ()
    """Names in the run's folder that it may change; None: all."""
    same_end: bool = False
    """Whether a success leaves a run that ends as the undisturbed one does."""
    own_config: bool = False
    """Whether it takes its config from the checkpoint."""


def checkpoint(rng: Random, scene: Scene) -> str:
    """One of the run, whether it is there or not."""
    names = sorted(path.name for path in scene.checkpoints.glob("*.pt")) if scene.checkpoints.is_dir() else []
    return f"{RUN}/checkpoints/{rng.choice(['latest.pt', 'best.pt', 'initial.pt', *names])}"


def source(rng: Random, scene: Scene) -> str:
    return rng.choice((RUN, RUN, f"{RUN}_initial", checkpoint(rng, scene)))


def train(*words: str, config: bool = True) -> Callable[[Random, Scene], list[str]]:
    """CKPT, FOLDER and SOURCE in the words stand for what they name."""

    def line(rng: Random, scene: Scene) -> list[str]:
        names = {"CKPT": checkpoint(rng, scene), "FOLDER": RUN, "SOURCE": source(rng, scene)}
        given = []
        for word in words:
            head, equals, tail = word.rpartition("=")
            given.append(f"{head}{equals}{names.get(tail, tail)}")
        return ["dist_train.py", *(["--config", "F.yaml"] if config else []), *given]

    return line


def tool(*words: str, takes_checkpoint: bool = True) -> Callable[[Random, Scene], list[str]]:
    def line(rng: Random, scene: Scene) -> list[str]:
        return ["dynsparse", words[0], source(rng, scene) if takes_checkpoint else RUN, *words[1:]]

    return line


HERE = (f"name={NAME}", "runs=runs", "train.epochs=2")
"""Settings that keep a damaged config from naming another folder, or training for ever."""

COMMANDS = {
    command.name: command
    for command in (
        Command("auto", train("--resume", "auto"), None, same_end=True),
        Command("resume-folder", train("--resume", "FOLDER"), None, same_end=True),
        Command("resume-ckpt", train("--resume", "CKPT"), None, same_end=True),
        Command("resume-own", train("--resume", "CKPT", *HERE, config=False), None, same_end=True, own_config=True),
        Command("overwrite", train("--overwrite"), None, same_end=True),
        Command("start", train(), None, same_end=True),
        Command("check-auto", train("--resume", "auto", "--check")),
        Command("check-folder", train("--resume", "FOLDER", "--check")),
        Command("check-ckpt", train("--resume", "CKPT", "--check")),
        Command("check-own", train("--resume", "CKPT", *HERE, "--check", config=False), own_config=True),
        Command("check-overwrite", train("--overwrite", "--check")),
        Command("check-start", train("--check")),
        Command("evaluate", train("--evaluate", "SOURCE")),
        Command("evaluate-own", train("--evaluate", "SOURCE", config=False), own_config=True),
        Command("check-evaluate", train("--evaluate", "SOURCE", "--check")),
        Command("weights-from", train(f"name={OTHER}", "start.weights_from=SOURCE")),
        Command("masks-from", train(f"name={OTHER}", "start.masks_from=SOURCE")),
        Command("both-from", train(f"name={OTHER}", "start.weights_from=SOURCE", "start.masks_from=SOURCE")),
        Command("check-from", train(f"name={OTHER}", "start.weights_from=SOURCE", "--check")),
        Command("check-masks-from", train(f"name={OTHER}", "start.masks_from=SOURCE", "--check")),
        Command("dry-run", train(f"name={OTHER}", "start.masks_from=SOURCE", "--dry-run")),
        Command("report", tool("report", takes_checkpoint=False), ("report.html",)),
        Command("inspect", tool("inspect"), own_config=True),
        Command("inspect-json", tool("inspect", "--json"), own_config=True),
        Command("export-torch", tool("export", "--format", "torch", "--out", "out/x.pt"), own_config=True),
        Command("export-safetensors", tool("export", "--format", "safetensors", "--out", "out/x"), own_config=True),
        Command("export-csr", tool("export", "--format", "csr", "--out", "out/x"), own_config=True),
        Command("export-compact", tool("export", "--format", "compact", "--out", "out/x"), own_config=True),
        Command("speed-up", tool("speed-up", "--rounds", "3"), own_config=True),
    )
}

_CHECKPOINT = (6, 3, 3, 3, 2, 1, 2, 1, 1, 1, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1)
_FILE = (6, 2, 1, 0, 4, 2, 2, 1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1, 0, 1, 0, 0, 0, 0)
_LOCK = (6, 2, 1, 1, 4, 3, 3, 1, 1, 1, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0)
LIKELY = {
    "checkpoint": _CHECKPOINT,
    "archive": _CHECKPOINT,
    "signed": _CHECKPOINT,
    "folder": _CHECKPOINT,
    "file": _FILE,
    "text": _FILE,
    "partial": _FILE,
    "lock": _LOCK,
}
"""Weight of each command for each kind of mutation, in the order of `COMMANDS`."""


def choose(rng: Random, kind: str, begin: str = "") -> Command:
    """A command whose name begins so."""
    names = [name for name in COMMANDS if name.startswith(begin)]
    weights = [weight for name, weight in zip(COMMANDS, LIKELY[kind], strict=True) if name in names]
    return COMMANDS[rng.choices(names, weights if any(weights) else None)[0]]


def execute(home: Path, line: list[str]) -> int:
    """Run a command in this process, which ends soon after: its folder, arguments and log are changed."""
    from dynsparse.cli import train
    from dynsparse.cli.actions import training
    from dynsparse.cli.main import main
    from dynsparse.training.run import timing

    # Else a holder that can only be watched takes half a minute to prove dead.
    timing.STALE_SECONDS = 0.4
    timing.POLL_SECONDS = 0.05
    training.BEAT_SECONDS = -0.5  # `--check` looks for a second longer.
    logging.getLogger().handlers.clear()
    os.chdir(home)
    sys.argv = line
    if line[0] == "dist_train.py":
        return train.main(line[1:], "dist_train.py")
    return main(line[1:])
