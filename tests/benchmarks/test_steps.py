"""`benchmarks.steps`, tiny: what it says but how long things take, which only a long run on a quiet machine can."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import steps
from benchmarks.harness.calls import Watch
from benchmarks.parts.step_cases import METHODS, WRN, settings_of, tiny
from dynsparse.training.network import build_network

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_tiny(tmp_path: Path) -> None:
    """Run it in a process of its own: it sets the number of threads."""
    command = [sys.executable, "-m", "benchmarks.steps", "--tiny", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "steps.json").read_text())
    assert set(content["cases"]) == {"resnet50", "wrn"}
    for case in content["cases"].values():
        assert set(case["ratio_to_dense"]) == set(case["added"]) == set(steps.TITLES)
        assert case["ratio_to_dense"]["dense"]["median"] == 1
        assert case["added"]["dense"]["share_of_dense"]["max"] == 0
        assert all(
            added["ms"]["min"] <= added["ms"]["median"] <= added["ms"]["max"] for added in case["added"].values()
        )
        assert case["losses"]["static"] == case["losses"]["multiplied"] == case["losses"]["dsr"], "the same network"
        assert case["losses"]["dense"] != case["losses"]["static"]
        assert abs(case["active_weights"] - 0.1 * case["sparse_layer_weights"]) < 50
        assert case["reallocation"]["moved"]["min"] == case["reallocation"]["moved"]["max"] == case["moves"]
    page = (tmp_path / "steps.md").read_text()
    assert page.count("\n| ") == 2 * (2 + len(steps.TITLES))
    assert page.count("are equal, to the bit") == 2
    (tmp_path / "steps.md").unlink()
    subprocess.run([*command, "--page"], cwd=ROOT, capture_output=True, check=True)
    assert (tmp_path / "steps.md").read_text() == page, "made from the JSON alone"


def test_calls_within_calls_count_once() -> None:
    watch, calls = Watch(), []
    inner = watch.timed(lambda: calls.append("inner"), "inner")
    outer = watch.timed(lambda: (inner(), watch.seconds), "outer")
    assert outer()[1] == 0, "what is within is in the sum when the outer call is done"
    assert calls == ["inner"]
    assert watch.take()["every"][0] > 0
    assert watch.seconds == 0


def test_dense_has_no_masks() -> None:
    case = tiny(WRN)
    masks = {way: build_network(settings_of(case, way), torch.device("cpu")).masks for way in METHODS}
    assert len(masks["dense"]) == len(masks["multiplied"]) == 0 < len(masks["static"])
