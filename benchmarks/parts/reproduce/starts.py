"""The starts of a run: a line each with commit, processor and versions, in a file beside the run's folder."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness import record
from benchmarks.harness.record import Result
from dynsparse.training.run import names
from dynsparse.training.state import versions


def note(folder: Path) -> None:
    """Add a start of a run. One that resumes nothing begins the list anew."""
    resumes = (folder / names.CHECKPOINTS / names.LATEST).exists()
    with _file(folder).open("a" if resumes else "w") as file:
        file.write(json.dumps({**record.origin(), "versions": versions()}) + "\n")


def origin_of(folder: Path, of_run: Result) -> Result:
    """Return commit, processor and versions of a run's last start, and in `earlier` those of starts that differ.

    For a run that was made before starts were noted: those of this process, with the versions `of_run`.
    """
    try:
        lines = _file(folder).read_text().splitlines()
    except FileNotFoundError:
        return {**record.origin(), "versions": of_run}
    last, *before = map(json.loads, dict.fromkeys(reversed(lines)))
    return {**last, **({"earlier": before[::-1]} if before else {})}


def _file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.starts.jsonl")
