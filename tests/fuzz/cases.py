"""A case: a number that says which run is copied, what is done to it and which command runs on it."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from tests.fuzz import children, commands, scene
from tests.fuzz.limits import Limits
from tests.fuzz.mutations import MUTATIONS
from tests.fuzz.outcomes import Before, faults, last_line

_HOST_SECONDS = 120
"""For the process that damages a run and judges, beyond the deadline of the command."""


@dataclass(frozen=True)
class Filter:
    """Of mutations and commands, those whose names begin so."""

    mutation: str = ""
    command: str = ""


@dataclass(frozen=True)
class Result:
    seed: int
    subject: str
    mutation: str
    did: str
    command: str
    line: str
    code: int | None
    seconds: float
    grown: int
    faults: list[str]
    err: str

    @property
    def ending(self) -> str:
        kinds = " ".join(sorted({fault.partition(":")[0] for fault in self.faults}))
        return f"failed ({kinds})" if self.faults else f"exit code {self.code}"


@dataclass(frozen=True)
class Fuzzer:
    subjects: dict[str, scene.Subject]
    work: Path
    only: Filter
    seconds: float
    """The deadline of a command."""

    def folder(self, seed: int) -> Path:
        return self.work / f"case-{seed}"

    def run(self, seed: int) -> Result:
        """In a child of its own, so that no case is left with what another did to this process."""
        outcome = self._in_child(seed, self._run)
        try:
            return Result(**json.loads((self.folder(seed) / "result.json").read_text()))
        except (OSError, ValueError):
            said = [f"fuzzer: {last_line(outcome.err) or outcome}"]
            return Result(
                seed, "", "the fuzzer itself", "", "", "", outcome.code, outcome.seconds, 0, said, outcome.err
            )

    def plan(self, seed: int) -> str:
        """Damage a run, say how, and which command would run on it."""
        outcome = self._in_child(seed, lambda seed: print(self._begin(seed)[1:]))
        self.remove(seed)
        return (outcome.out or outcome.err).strip()

    def _in_child(self, seed: int, act: Callable[[int], object]) -> children.Outcome:
        folder = self.folder(seed)
        folder.mkdir()
        return children.run(lambda: act(seed), folder, Limits(self.seconds + _HOST_SECONDS, 12 << 30))

    def _begin(self, seed: int) -> tuple[scene.Scene, str, str, str, str, list[str]]:
        """The damaged copy; names of subject and mutation, what was done, the command and its words."""
        # The kind of damage goes round, so that few cases have many kinds; all else is drawn.
        names = [name for name in MUTATIONS if name.startswith(self.only.mutation)]
        mutation = MUTATIONS[names[seed % len(names)]]
        rng = Random(seed)
        subject = self.subjects[rng.choice(list(self.subjects))]
        other = self.subjects["static-done" if subject.name != "static-done" else "adam-cnn-done"]
        stage = scene.build(self.folder(seed) / "home", subject, other.run)
        did = mutation.act(rng, stage)
        command = commands.choose(rng, mutation.kind, self.only.command)
        return stage, subject.name, mutation.name, did, command.name, command.arguments(rng, stage)

    def _run(self, seed: int) -> None:
        stage, *names, line = self._begin(seed)
        subject, mutation, command = self.subjects[names[0]], MUTATIONS[names[1]], commands.COMMANDS[names[3]]
        resumes = command.name == "auto" and mutation.kind in ("checkpoint", "archive")
        before = Before.of(stage, subject.checkpoints, resumes=resumes)
        limits = Limits.of(self.seconds, scene.bytes_on_disk(stage.home))
        outcome = children.run(lambda: commands.execute(stage.home, line), self.folder(seed), limits)
        found = faults(outcome, stage, command, before, subject)
        if mutation.absurd_config and command.own_config and line[0] == "dist_train.py":
            # What is asked for may take as long and as much as it does.
            found = [fault for fault in found if not fault.startswith(("hang", "memory"))]
        result = Result(
            seed,
            *names,
            " ".join(line),
            outcome.code,
            outcome.seconds,
            outcome.grown,
            found,
            outcome.err[:20_000],
        )
        (self.folder(seed) / "result.json").write_text(json.dumps(asdict(result)))

    def remove(self, seed: int) -> None:
        """The folder of a case, whatever modes its files have."""
        for top, names, _ in os.walk(self.folder(seed)):
            for path in (Path(top) / name for name in names):
                if not path.is_symlink():
                    path.chmod(stat.S_IRWXU)
        shutil.rmtree(self.folder(seed), ignore_errors=True)
