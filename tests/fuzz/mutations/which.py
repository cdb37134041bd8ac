"""Choice of the run's files that a mutation changes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.scene import Scene

RUN_FILES = (
    "metrics.jsonl",
    "history.jsonl",
    "lock.json",
    "launch.json",
    "config.yaml",
    "summary.json",
    "report.html",
)
PARTIAL_FILES = (
    "config.partial",
    "metrics.partial",
    "summary.partial",
    "launch.partial",
    "lock-0123456789abcdef.partial",
    "checkpoints/latest.partial",
    "checkpoints/best.partial",
    "checkpoints/step-000000016.partial",
)
OTHER_FILES = ("checkpoints/latest.pt.stale", "checkpoints/best.pt.stale1", "events.out.tfevents.1.host.1.0")


def steps(scene: Scene) -> list[Path]:
    """Newest first."""
    return sorted(scene.checkpoints.glob("step-*.pt"), reverse=True)


def _names_of(scene: Scene, path: Path) -> list[Path]:
    """All names of a file that has hard links."""
    return [other for other in sorted(scene.checkpoints.glob("*.pt")) if other.samefile(path)]


SELECTIONS: dict[str, Callable[[Random, Scene], list[Path]]] = {
    "the newest step": lambda rng, scene: steps(scene)[:1],
    "the newest under all of its names": lambda rng, scene: _names_of(scene, steps(scene)[0]),
    "all steps": lambda rng, scene: steps(scene),
    "all": lambda rng, scene: sorted(scene.checkpoints.glob("*.pt")),
    "the latest": lambda rng, scene: [scene.checkpoints / "latest.pt"],
    "the best": lambda rng, scene: [scene.checkpoints / "best.pt"],
    "the initial one": lambda rng, scene: [scene.checkpoints / "initial.pt"],
    "one": lambda rng, scene: [rng.choice(sorted(scene.checkpoints.glob("*.pt")))],
}
_WEIGHTS = (4, 5, 1, 4, 2, 2, 1, 1)


def checkpoints(rng: Random, scene: Scene) -> tuple[str, list[Path]]:
    """Some of the run's checkpoints, and which. Never none; not all need be there, as best.pt of a run in its start."""
    name = rng.choices(list(SELECTIONS), weights=_WEIGHTS)[0]
    return name, SELECTIONS[name](rng, scene)


def replace(path: Path, content: bytes) -> None:
    """Write a file anew, so that other names of the old one keep its content."""
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def remove(path: Path) -> None:
    """Whatever it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
