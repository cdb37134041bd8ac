"""Snapshots of GPU memory. A stand-in for torch.cuda.memory takes the calls, but in the last test."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.memory_snapshot import MOST_EVENTS, require_memory_history, snapshot_when_full
from tests.training import runs

GPU = torch.device("cuda", 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Calls of torch.cuda.memory, in order. A snapshot is a small file."""
    found: list[object] = []

    def dump(path: str) -> None:
        found.append("dump")
        Path(path).write_bytes(pickle.dumps({"segments": []}))

    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **options: found.append(options))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", dump)
    return found


@pytest.mark.parametrize("history", [False, True])
def test_a_snapshot_is_written_when_memory_runs_out(
    tmp_path: Path, calls: list[object], caplog: pytest.LogCaptureFixture, history: bool
) -> None:
    with (
        pytest.raises(torch.OutOfMemoryError, match="tried to allocate"),
        snapshot_when_full(tmp_path, GPU, rank=1, history=history),
    ):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")
    recorded = [{"max_entries": MOST_EVENTS}, "dump", {"enabled": None}]
    assert calls == (recorded if history else ["dump"])
    path = tmp_path / "memory-rank-1.pickle"
    assert path.exists()
    plot = "trace_plot" if history else "segment_plot"
    assert f"python -m torch.cuda._memory_viz {plot} {path} -o memory.html" in caplog.text
    assert ("log.memory_history=true" in caplog.text) is not history


def test_other_errors_leave_none(tmp_path: Path, calls: list[object]) -> None:
    with pytest.raises(KeyError), snapshot_when_full(tmp_path, GPU, rank=0, history=False):
        raise KeyError
    assert calls == []


def test_a_snapshot_that_cannot_be_written_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", full)
    with pytest.raises(torch.OutOfMemoryError), snapshot_when_full(tmp_path, GPU, rank=0, history=False):
        raise torch.OutOfMemoryError
    assert "no snapshot of it could be written" in caplog.text


def test_nothing_is_done_on_a_cpu(tmp_path: Path, calls: list[object]) -> None:
    with (
        pytest.raises(torch.OutOfMemoryError),
        snapshot_when_full(tmp_path, torch.device("cpu"), rank=0, history=True),
    ):
        raise torch.OutOfMemoryError
    assert (calls, list(tmp_path.iterdir())) == ([], [])


def test_a_history_on_a_cpu_is_refused() -> None:
    asked = {"distributed": {"backend": "gloo"}, "log": {"memory_history": True}}
    with pytest.raises(UserError, match=r"log\.memory_history .* on CPUs: leave it out"):
        require_memory_history(runs.config(**asked), Worker())
    require_memory_history(runs.config(), Worker())


@pytest.mark.gpu
@pytest.mark.parametrize(("plot", "history"), [("trace_plot", True), ("segment_plot", False)])
def test_a_true_snapshot_can_be_drawn(tmp_path: Path, plot: str, history: bool) -> None:
    with (
        pytest.raises(torch.OutOfMemoryError),
        snapshot_when_full(tmp_path, GPU, rank=0, history=history),
    ):
        torch.empty(1 << 50, dtype=torch.uint8, device=GPU)
    page = tmp_path / "memory.html"
    drawn = [sys.executable, "-m", "torch.cuda._memory_viz", plot, tmp_path / "memory-rank-0.pickle"]
    subprocess.run([*drawn, "-o", page], check=True)
    assert page.stat().st_size > 0
