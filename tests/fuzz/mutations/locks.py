"""Locks of others: dead, alive, elsewhere, and those that are none."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from random import Random

from dynsparse.training.run.clock import now
from dynsparse.training.run.holder import Holder
from tests.fuzz.mutations.registry import mutation
from tests.fuzz.mutations.texts import ODD_VALUES
from tests.fuzz.mutations.which import replace
from tests.fuzz.scene import Scene


def _lock(scene: Scene, **changed: object) -> None:
    fields = {**dataclasses.asdict(Holder.myself(None)), "alive": now(), **changed}
    replace(scene.run / "lock.json", (json.dumps(fields) + "\n").encode())


@mutation("lock")
def of_a_living_process(rng: Random, scene: Scene) -> str:
    _lock(scene)
    return "held by a process that lives"


@mutation("lock")
def of_a_dead_process(rng: Random, scene: Scene) -> str:
    _lock(scene, process=rng.choice((4_194_303, os.getpid())), started=1)
    return "held by a process that is gone"


@mutation("lock")
def of_another_machine(rng: Random, scene: Scene) -> str:
    _lock(scene, host=rng.choice(("elsewhere", "", "a\nb", "x" * 100_000, "\x1b[2J")), space=rng.choice((None, "x")))
    return "held on another machine"


@mutation("lock")
def of_odd_fields(rng: Random, scene: Scene) -> str:
    """A holder with one to three fields that no start would write."""
    names = rng.sample([*(field.name for field in dataclasses.fields(Holder)), "alive", "unknown"], rng.choice((1, 3)))
    values = {name: rng.choice(ODD_VALUES) for name in names}
    _lock(scene, **values)
    return f"lock.json with {str(values)[:200]}"


@mutation("lock")
def of_a_process_that_cannot_be(rng: Random, scene: Scene) -> str:
    values = {
        "process": rng.choice((0, -1, 1, 2**22, 2**31, 2**63, 2**64, True, 1.5, "1")),
        "started": rng.choice((None, 0, -1, 2**70, True, "1")),
    }
    _lock(scene, **values)
    return f"lock.json with {values}"


@mutation("lock")
def claims(rng: Random, scene: Scene) -> str:
    """Leave the claims of starts that died as they took over a stale lock."""
    _lock(scene, process=4_194_303, started=1)
    content = (scene.run / "lock.json").read_bytes()
    from hashlib import sha256

    names = [f"lock-{sha256(content).hexdigest()[:16]}.partial", "lock-x.partial", "lock-.partial"]
    for name in names:
        Path(scene.run / name).touch()
    return "claims that were left"
