"""Cases of damaged runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz import children, commands, scene, subjects
from tests.fuzz.cases import Filter, Fuzzer, Result
from tests.fuzz.limits import Limits
from tests.fuzz.mutations import MUTATIONS
from tests.fuzz.outcomes import Before, faults


@dataclass(frozen=True)
class RunFuzzer(Fuzzer):
    """A copy of a small run is damaged, and a command runs on it."""

    subjects: dict[str, scene.Subject]

    @classmethod
    def make(cls, work: Path, only: Filter, seconds: float) -> RunFuzzer:
        return cls(work, only, seconds, subjects.make(work / "subjects"))

    @staticmethod
    def names() -> tuple[list[str], list[str]]:
        """Names of mutations and of commands."""
        return list(MUTATIONS), list(commands.COMMANDS)

    def begin(self, seed: int) -> tuple[str, ...]:
        _, *names, line = self._begin(seed)
        return (*names, " ".join(line))

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

    def judged(self, seed: int) -> Result:
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
        return Result(
            seed,
            *names,
            " ".join(line),
            outcome.code,
            outcome.seconds,
            outcome.grown,
            found,
            outcome.err[:20_000],
        )
