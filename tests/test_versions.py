"""Versions that pyproject.toml allows, and those that the suite was run with."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info < (3, 11):
    pytest.skip("tomllib is of Python 3.11", allow_module_level=True)
import tomllib

ROOT = Path(__file__).parents[1]
TOOLS = ("dev", "docs", "screenshots")
"""Extras for work on the project itself: constraints.txt alone says what they bring."""


def pinned(path: Path) -> Iterator[Requirement]:
    for line in path.read_text().splitlines():
        if re.match(r"\w", line):
            yield Requirement(line)


def allowed() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [one for name, lines in project["optional-dependencies"].items() if name not in TOOLS for one in lines]
    return {one.name.lower(): one for one in map(Requirement, [*project["dependencies"], *extras])}


def test_the_lowest_versions_are_those_that_were_run() -> None:
    """Each dependency has a lowest version, and the file of lowest versions names it and nothing else."""
    lowest = {one.name: one for one in pinned(ROOT / ".ci" / "lowest.txt")}
    named = {name: str(one.specifier).replace(">=", "==") for name, one in allowed().items()}
    assert named == {name: str(one.specifier) for name, one in lowest.items()}


def test_the_tested_versions_are_allowed() -> None:
    pins = list(pinned(ROOT / "constraints.txt"))
    for name, one in allowed().items():
        tested = [pin.specifier for pin in pins if pin.name.lower() == name]
        assert tested, name
        for (pin,) in tested:
            assert one.specifier.contains(Version(pin.version)), name
