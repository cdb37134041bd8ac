"""Cases of damaged inputs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz import children
from tests.fuzz.cases import Filter, Fuzzer, Result
from tests.fuzz.inputs import commands, execute, judge, subjects
from tests.fuzz.inputs.mutations import MUTATIONS
from tests.fuzz.inputs.mutations.configs import stand
from tests.fuzz.inputs.mutations.registry import SUBJECTS, Mutation
from tests.fuzz.inputs.place import Place, Subject, build
from tests.fuzz.limits import Limits

MEMORY = 1 << 30
"""Bytes that a program and the processes that it starts may take beyond the ordinary."""
ORDINARY = 400 << 20
"""Bytes that they take for sound data."""
GRACE = 5
"""Seconds in which processes of the torch loader find that the trainer has ended."""


@dataclass(frozen=True)
class InputFuzzer(Fuzzer):
    """A copy of a small data set, its config or its lists are damaged, and programs run on them."""

    subjects: dict[str, Subject]

    @classmethod
    def make(cls, work: Path, only: Filter, seconds: float) -> InputFuzzer:
        made = cls(work, only, seconds, subjects.make(work / "subjects"))
        for number, command in enumerate(commands.COMMANDS.values()):
            made.require_sound(command, command.subjects[number % len(command.subjects)])
        return made

    @staticmethod
    def names() -> tuple[list[str], list[str]]:
        """Names of mutations and of commands."""
        return list(MUTATIONS), list(commands.COMMANDS)

    def require_sound(self, command: commands.Command, subject: str) -> None:
        """Sound inputs are taken: a command line that no program takes would judge nothing."""
        folder = self.work / "sound"
        place = build(folder / "home", self.subjects[subject])
        place.write_config()
        outcomes = [self._do(place, line) for line in command.lines(Random(0), place)]
        assert not outcomes[-1].code, [outcome.err[-1_000:] for outcome in outcomes]
        shutil.rmtree(folder)

    def begin(self, seed: int) -> tuple[str, ...]:
        place, mutation, did, command, lines = self._begin(seed)
        return (place.subject.name, mutation.name, did, command.name, _text(lines))

    def _begin(self, seed: int) -> tuple[Place, Mutation, str, commands.Command, commands.Lines]:
        # The kind of damage goes round, as in `run_cases`.
        names = [name for name in MUTATIONS if name.startswith(self.only.mutation)]
        mutation = MUTATIONS[names[seed % len(names)]]
        rng = Random(seed)
        place = build(self.folder(seed) / "home", self.subjects[rng.choice(SUBJECTS[mutation.kind])])
        place.touched = mutation.kind
        did = mutation.act(rng, place)
        command = commands.choose(rng, mutation.kind, place, self.only.command)
        lines = command.lines(rng, place)
        place.writes = command.writes
        stand(rng, place)
        return place, mutation, did, command, lines

    def judged(self, seed: int) -> Result:
        place, mutation, did, command, lines = self._begin(seed)
        before = place.protected()
        outcomes = [self._do(place, line) for line in lines]
        verdicts = {}
        if place.suspects and mutation.kind == "image" and "data.on_bad_file=skip" in lines[-1]:
            loader = next(word for word in lines[-1] if word.startswith("data.loader=")).partition("=")[2]
            verdicts = judge.parsed(self._do(place, ["verdicts", loader]))
        found = judge.faults(command.name, place, judge.Seen(lines, outcomes, verdicts), before)
        return Result(
            seed,
            place.subject.name,
            mutation.name,
            did,
            command.name,
            _text(lines),
            outcomes[-1].code,
            sum(outcome.seconds for outcome in outcomes),
            max(outcome.grown for outcome in outcomes),
            found,
            "\n---\n".join(outcome.err[:20_000] for outcome in outcomes),
        )

    def _do(self, place: Place, line: list[str]) -> children.Outcome:
        limits = Limits(self.seconds, MEMORY + ORDINARY, grace=GRACE)
        said = place.home.parent / "said"
        said.mkdir(exist_ok=True)
        return children.run(lambda: execute.program(place.home, line, place.suspects), said, limits)


def _text(lines: commands.Lines) -> str:
    return "; ".join(" ".join(line)[:1_000] for line in lines)
