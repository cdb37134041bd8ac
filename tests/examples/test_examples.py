"""Each example runs as a program, learns, and keeps its sparsity."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.training import runs

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ACTIVE = {
    "plain_loop": (0.05, 90),
    "lightning_trainer": (0.05, 85),
    "hugging_face_trainer": (0.2, 85),
    "timm_model": (0.1, 80),
    "own_method": (0.05, 85),
}
"""Largest fraction of active weights, and the accuracy to reach; a guess is right in 10 % of cases."""


def run(*words: object, folder: Path = ROOT) -> str:
    """Return what a program prints. Fails with its errors."""
    result = runs.python(*words, limit=280, at=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def require(output: str, fraction: float, accuracy: float) -> None:
    """Check the figures that every example prints at its end."""
    active, weights = (
        int(number.replace(",", "")) for number in re.findall(r"([\d,]+) of ([\d,]+) weights", output)[-1]
    )
    assert 0 < active <= fraction * weights
    (reached,) = re.findall(r"test accuracy ([\d.]+) %", output)
    assert float(reached) >= accuracy


SLOW = ("hugging_face_trainer", "lightning_trainer", "own_method", "timm_model")
"""Examples of what tests/loops, tests/models and tests/test_own_method.py try too."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else []) for name in ACTIVE],
)
def test_the_example_learns_and_stays_sparse(name: str) -> None:
    require(run(EXAMPLES / f"{name}.py"), *ACTIVE[name])


@pytest.mark.slow
def test_hugging_faces_trainer_resumes_to_the_same_end(tmp_path: Path) -> None:
    """Take its last checkpoint away, as if it had been killed in the last epoch."""
    program = EXAMPLES / "hugging_face_trainer.py"
    whole = run(program, tmp_path)
    assert whole.endswith("from the beginning\n")
    before, last = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    state = torch.load(last / "sparse.pt", weights_only=True)
    assert state["steps"] == 15 * 28
    shutil.rmtree(last)
    resumed = run(program, tmp_path)
    assert resumed.endswith(f"resumed from {before.name}\n")
    again = torch.load(last / "sparse.pt", weights_only=True)
    assert (again["steps"], again["weights"]) == (state["steps"], state["weights"])
    assert re.findall(r"test accuracy ([\d.]+)", resumed) == re.findall(r"test accuracy ([\d.]+)", whole)


@pytest.mark.slow
def test_two_workers() -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    require(run(*torchrun, EXAMPLES / "ddp_amp.py"), 0.05, 80)


@pytest.mark.slow
def test_images_in_folders(tmp_path: Path) -> None:
    output = run(EXAMPLES / "own_data_set.py", folder=tmp_path)
    (summary,) = tmp_path.glob("runs/*/summary.json")
    result = json.loads(summary.read_text())
    assert result["test_top1"] >= 80
    assert result["sparsity"] >= 0.7, output


def test_each_example_is_tested() -> None:
    others = {"digits", "ddp_amp", "own_data_set"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*ACTIVE, *others}
