"""A case: a number that says what is damaged, how, and which commands run on it. What kinds there are: KINDS."""

from __future__ import annotations

import json
import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.fuzz import children
from tests.fuzz.limits import Limits
from tests.fuzz.outcomes import last_line

_HOST_SECONDS = 120
"""Seconds for the process that damages and judges, beyond the deadline of its commands."""


@dataclass(frozen=True)
class Filter:
    """Choice of mutations and commands by the beginnings of their names."""

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
class Fuzzer(ABC):
    work: Path
    only: Filter
    seconds: float
    """The deadline of a command."""

    @abstractmethod
    def begin(self, seed: int) -> tuple[str, ...]:
        """Damage something, and say how, and which command would run on it."""

    @abstractmethod
    def judged(self, seed: int) -> Result:
        """Damage something, run the commands and judge them. In a process that ends soon after."""

    def folder(self, seed: int) -> Path:
        return self.work / f"case-{seed}"

    def run(self, seed: int) -> Result:
        """Run a case in a child process, so that no case sees what another did to this process."""
        outcome = self._in_child(seed, lambda: self._write(self.judged(seed)))
        try:
            return Result(**json.loads((self.folder(seed) / "result.json").read_text()))
        except (OSError, ValueError):
            said = [f"fuzzer: {last_line(outcome.err) or outcome}"]
            return Result(
                seed, "", "the fuzzer itself", "", "", "", outcome.code, outcome.seconds, 0, said, outcome.err
            )

    def plan(self, seed: int) -> str:
        """Describe a case, as `begin` does."""
        outcome = self._in_child(seed, lambda: print(self.begin(seed)))
        self.remove(seed)
        return (outcome.out or outcome.err).strip()

    def _in_child(self, seed: int, act: Callable[[], object]) -> children.Outcome:
        folder = self.folder(seed)
        folder.mkdir()
        return children.run(act, folder, Limits(5 * self.seconds + _HOST_SECONDS, 12 << 30, file=1 << 40))

    def _write(self, result: Result) -> None:
        (self.folder(result.seed) / "result.json").write_text(json.dumps(asdict(result)))

    def remove(self, seed: int) -> None:
        """The folder of a case, whatever modes its files have."""
        for top, names, _ in os.walk(self.folder(seed)):
            for path in (Path(top) / name for name in names):
                if not path.is_symlink():
                    path.chmod(stat.S_IRWXU)
        shutil.rmtree(self.folder(seed), ignore_errors=True)
