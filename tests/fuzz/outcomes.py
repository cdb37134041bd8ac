"""Judges how a command ended and what it left behind."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from dynsparse.errors import EXIT_BAD_INPUT, EXIT_DONE
from tests.fuzz.children import Outcome
from tests.fuzz.commands import Command
from tests.fuzz.scene import Scene, Snapshot, Subject, changes, snapshot

_SAID = re.compile(r"(error|warning): \S")
_DECODERS = re.compile(r"(?!.*\.py\b)[A-Za-z][ -~]{,150}$")
"""One line of C, and none of Python's warnings."""
_PROGRESS = re.compile(r"(write \w+|index|scan|prepare): [\d,.]+ (?:MB |GB )?of [\d,.]+ \w+$")
_TRACE = re.compile(r"^(Traceback \(most recent call last\)|Fatal Python error|Exception in thread)", re.MULTILINE)
_MOST_SAID = 200_000
"""Bytes of standard error that a user could still be asked to read."""


@dataclass(frozen=True)
class Before:
    """State of the folders before the command ran."""

    protected: Snapshot
    run: Snapshot
    whole: frozenset[str]
    """Hashes of whole checkpoints in the run's folder."""
    summary: tuple[int, int] | None
    goes_on: bool
    """Whether the command is to go on from a whole checkpoint that is left, whatever the others are."""

    @classmethod
    def of(cls, scene: Scene, known: frozenset[str], *, resumes: bool = False) -> Before:
        """`resumes`: whether the command looks for the newest whole checkpoint, and all but checkpoints is in order."""
        whole = scene.whole_checkpoints(known)
        goes_on = resumes and any(path.name.startswith("step-") and path.suffix == ".pt" for path in whole)
        hashes = frozenset(whole.values())
        return cls(scene.protected(), snapshot(scene.run), hashes, _identity(scene.run / "summary.json"), goes_on)


def faults(outcome: Outcome, scene: Scene, command: Command, before: Before, subject: Subject) -> list[str]:
    """All that must not be, a line each; its first word is its kind. Empty if all is well."""
    return [
        *of_end(outcome),
        *(["refused: a whole checkpoint is left"] if before.goes_on and outcome.code == EXIT_BAD_INPUT else ()),
        *of_words(outcome),
        *_of_files(scene, command, before),
        *(_of_checkpoints(scene, before, subject.checkpoints) if outcome.code != EXIT_DONE else ()),
        *(_of_result(scene, before, subject.digests) if outcome.code == EXIT_DONE and command.same_end else ()),
    ]


def of_end(outcome: Outcome) -> list[str]:
    found = []
    if outcome.hung:
        found.append(f"hang: killed after {outcome.seconds:.0f} s")
    if outcome.bloated:
        found.append(f"memory: took {outcome.grown / 2**20:,.0f} MB")
    if outcome.code is not None and outcome.code < 0:
        found.append(f"signal: {-outcome.code}")
    elif outcome.code not in (EXIT_DONE, EXIT_BAD_INPUT, None):
        found.append(f"exit: code {outcome.code}")
    if outcome.left_behind:
        found.append("process: one that it started lived on")
    return found


def of_words(outcome: Outcome, *, decoders: bool = False) -> list[str]:
    """`decoders`: whether libraries in C may have said what they think of an image, such as "Bogus Huffman table"."""
    if _TRACE.search(outcome.err):
        return [f"traceback: {last_line(outcome.err)}"]
    found = []
    if len(outcome.err) > _MOST_SAID:
        found.append(f"words: {len(outcome.err):,} bytes on standard error")
    if outcome.code == EXIT_BAD_INPUT:
        lines = outcome.err.splitlines()
        known = (_SAID, _PROGRESS, *([_DECODERS] if decoders else []))
        found += [f"words: {line[:200]}" for line in lines if not any(form.match(line) for form in known)][:3]
        if not any(line.startswith("error: ") for line in lines):
            found.append("words: exit code 2 without an error")
    return found


def last_line(err: str) -> str:
    """The exception, of a traceback."""
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith((" ", "error: ", "warning: "))]
    return lines[-1][:300] if lines else ""


def _of_files(scene: Scene, command: Command, before: Before) -> list[str]:
    found = [f"outside: {line}" for line in changes(before.protected, scene.protected())]
    if gone := scene.strangers_gone():
        found.append(f"strangers: {gone} files that are not of the run are gone")
    if command.writes is not None:
        after = snapshot(scene.run)
        for name in command.writes:
            after[name] = before.run.get(name, "absent")
        found += [
            f"changed: {line}" for line in changes({**dict.fromkeys(command.writes, "absent"), **before.run}, after)
        ]
    return found


def _of_checkpoints(scene: Scene, before: Before, known: frozenset[str]) -> list[str]:
    lost = before.whole - set(scene.whole_checkpoints(known).values())
    return [f"lost: {len(lost)} of {len(before.whole)} whole checkpoints"] if lost else []


def _of_result(scene: Scene, before: Before, digests: dict[str, str]) -> list[str]:
    path = scene.run / "summary.json"
    if before.summary is not None and _identity(path) == before.summary:
        return []  # The run had ended, and was left as it was.
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return [f"summary: {type(error).__name__}"]
    if scene.signed:
        return []
    return [
        f"end: {key} is {summary.get(key)}, not {value}" for key, value in digests.items() if summary.get(key) != value
    ]


def _identity(path: Path) -> tuple[int, int] | None:
    """Tells a file that was written anew."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
