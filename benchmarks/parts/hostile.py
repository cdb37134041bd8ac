"""Starts that meet a hostile file, beside an ordinary one: CPU seconds and memory to the error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness.processes import watched
from benchmarks.harness.record import Result
from benchmarks.harness.script import keep_whole, plain_parser


def run(name: str, description: str | None, cases: Iterable[str], prepare: Callable[[str, Path], list[str]]) -> None:
    """Measure the first case, which is the ordinary one, and the others or those that --only names.

    `prepare` writes a case's files to a folder and returns the command that meets them.
    """
    ordinary, *hostile = cases
    parser = plain_parser(description)
    parser.add_argument("--only", action="append", choices=sorted(hostile), help="a case beside the ordinary one")
    asked = parser.parse_args()
    found = {}
    for case in [ordinary, *(one for one in hostile if asked.only is None or one in asked.only)]:
        found[case] = measured(case, prepare)
        print(f"{case}: {found[case]}", flush=True)
    above = {key: most_above(found, ordinary, key) for key in ("seconds", "processor_seconds", "peak_mib")}
    kept = keep_whole(name, {"above": above, "cases": found}, asked.output, whole=asked.only is None)
    print(f"at most above the ordinary: {above}; {kept}")


def measured(case: str, prepare: Callable[[str, Path], list[str]]) -> Result:
    """Run the command in a process of its own. `said` is the error, or the last line."""
    with TemporaryDirectory() as folder:
        ended = watched(prepare(case, Path(folder)), Path(folder) / "log")
    lines = [line.strip().replace(folder, "") for line in ended.said.splitlines()]
    errors = [line for line in lines if line.startswith("error:") or ".index" in line]
    return {
        "seconds": round(ended.seconds, 2),
        "processor_seconds": round(ended.cpu, 2),
        "peak_mib": round(ended.mib),
        "exit_code": ended.code,
        "said": errors[-1][:200] if errors else "",
    }


def most_above(found: dict[str, Result], ordinary: str, key: str) -> float:
    most: float = max(case[key] - found[ordinary][key] for case in found.values())
    return round(most, 2)
