"""`benchmarks.memory`, tiny: that it counts what is there."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import memory
from benchmarks.harness.runs import data_of, settled
from benchmarks.parts.kept_memory import kept_bytes
from benchmarks.parts.step_cases import WRN, Case, settings, tiny
from dynsparse.training.network import build_network
from dynsparse.training.trainer import Trainer
from pipelines.base import Data

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_tiny(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.memory", "--tiny", "--device", "cpu", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "memory.json").read_text())
    assert set(content["formats"]) == {"contiguous", "channels_last"}
    for ways in content["formats"].values():
        assert set(ways) == set(memory.TITLES)
        dense = ways["dense"]
        assert dense["kept"] == 0, "no masks, and a method without state"
        assert dense["ratio_to_dense"]["median"] == 1
        assert dense["peak"]["median"] > 12 * dense["total_parameters"], "weights, gradients, momentum"
        for way in ("static", "dsr", "rigl", "deepr"):
            found = ways[way]
            assert found["kept"] > 0
            assert found["bound"]["median"] == pytest.approx(
                1.05 * dense["peak"]["median"] + 8 * found["active_weights"]
            )
        moved = {way: found["moved"] for way, found in ways.items()}
        assert moved["dense"] == moved["full"] == moved["static"] == 0
        assert min(moved["dsr"], moved["rigl"], moved["deepr"]) > 0
        assert [ways[way]["reallocations"] for way in ("dsr", "rigl", "deepr")] == [1, 1, 3]
    page = (tmp_path / "memory.md").read_text()
    assert page.count("\n| ") == 2 * (2 + 6) + 2 + 2 * 5


def test_what_is_kept_is_counted_once() -> None:
    """Whatever masks and method add is found; what belongs to the network or is a view of it is not."""
    case = tiny(WRN)
    with closing(data_of(settings(case, {"name": "static"}))) as data:
        trainer = static(case, data)
        before = kept_bytes(trainer)
        at_least = sum(layer.active.nbytes for layer in trainer.masks)
        assert before >= at_least
        layer = next(iter(trainer.masks))
        kept = torch.zeros(100)
        extra = {"a": [kept, kept[:10]], "b": np.zeros(10, dtype=np.int64), "own": layer.weight.detach().view(-1)}
        trainer.sparse.method.extra = extra  # type: ignore[attr-defined]
        assert kept_bytes(trainer) == before + 400 + 80


def static(case: Case, data: Data) -> Trainer:
    config = settings(case, {"name": "static"})
    return settled(config, build_network(config, torch.device("cpu")), data)


def test_peak_is_the_largest_not_the_last() -> None:
    """64 MiB, held for a moment, in a process that has held more before."""
    meter_code = (
        "import torch; from benchmarks.parts.kept_memory import Meter\n"
        "torch.ones(2**25); meter = Meter(torch.device('cpu')); torch.ones(2**24); print(meter.peak())"
    )
    done = subprocess.run([sys.executable, "-c", meter_code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(2**26, rel=0.05)
