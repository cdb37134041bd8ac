"""`benchmarks.method_seconds`, tiny: every row of the table trains, but how long it takes only a long run can say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.method_seconds import tiny

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_tiny(tmp_path: Path) -> None:
    """Run it in a process of its own: it sets the number of threads."""
    command = [sys.executable, "-m", "benchmarks.method_seconds", "--tiny", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "method_seconds.json").read_text())
    assert list(content["whole_run_to_dense"]) == list(tiny().parts)
    assert content["rounds"] == 4
    assert content["steps_a_round"] == 6
    assert content["whole_run_to_dense"]["dense"] == 1
    for row, ratio in content["ratio_to_dense"].items():
        assert ratio["min"] <= content["whole_run_to_dense"][row] <= ratio["max"], "a mean lies between extremes"
