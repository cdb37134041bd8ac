"""No damage to a run or to inputs makes a command end in any way but success, or an error that says what is wrong."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.inputs.mutations import MUTATIONS
from tests.training import runs

CASES = {"runs": 140, "inputs": 230}
"""A fixed number, however fast the machine is."""
PARTS = {"runs": 28, "inputs": 46}
"""Tests that share them. The first of each is in `make test`."""
HOUR = 3600


def fuzz(tmp_path: Path, *arguments: Any) -> str:
    """Its words. Fails with them if a case did, or where it left files behind."""
    done = runs.python("-m", "tests.fuzz", *arguments, limit=HOUR, TMPDIR=str(tmp_path))
    assert done.returncode == 0, f"{done.stdout[:6000]}\n{done.stderr[-3000:]}"
    assert os.listdir(tmp_path) == []
    return str(done.stdout)


def test_each_mutation_of_inputs_has_a_case() -> None:
    assert len(MUTATIONS) <= CASES["inputs"]


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        pytest.param(kind, part, marks=[] if part == 1 else pytest.mark.slow)
        for kind in CASES
        for part in range(1, PARTS[kind] + 1)
    ],
)
def test_some_damage_of_each_kind(kind: str, part: int, tmp_path: Path) -> None:
    """Other cases than last week's would be others' failures: the seed is fixed, `make soak` searches."""
    all_cases, parts = CASES[kind], PARTS[kind]
    words = ("--kind", kind, "--cases", all_cases, "--part", f"{part}/{parts}", "--seed", 1)
    assert f"{len(range(part - 1, all_cases, parts))} cases" in fuzz(tmp_path, *words)


@pytest.mark.slow
@pytest.mark.timeout(HOUR)
@pytest.mark.parametrize("kind", CASES)
def test_half_an_hour_of_damage(kind: str, tmp_path: Path) -> None:
    fuzz(tmp_path, "--kind", kind, "--seconds", HOUR / 2, "--seed", 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_a_number_says_what_a_case_is(kind: str, tmp_path: Path) -> None:
    plan = ("--kind", kind, "--plan", "--cases", CASES[kind])
    assert fuzz(tmp_path, *plan) == fuzz(tmp_path, *plan)


@pytest.mark.slow
def test_it_leaves_nothing_when_it_is_asked_to_stop(tmp_path: Path) -> None:
    words = ["-m", "tests.fuzz", "--seconds", HOUR, "--mutation", "folder:nothing", "--log", tmp_path / "log"]
    process = runs.start([sys.executable, *words], TMPDIR=str(tmp_path))
    try:
        while process.poll() is None and not list(tmp_path.glob("*/subjects")):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    finally:
        runs.kill(process)
    assert process.returncode == 143
    # torch makes a folder for compiled code as soon as it is imported.
    assert [name for name in os.listdir(tmp_path) if not name.startswith("torchinductor_")] == []
