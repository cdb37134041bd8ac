from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynsparse.errors import UserError
from dynsparse.runtime import Worker, speaks_first


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert Worker.from_environment() == Worker(0, 1, 0, 1, under_torchrun=False)


def test_as_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    worker = Worker.from_environment()
    assert worker == Worker(5, 8, 1, 4, under_torchrun=True)
    assert not worker.is_main


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match=r"RANK is set, but of .* start with torchrun"):
        Worker.from_environment()


@pytest.mark.parametrize(
    ("gpus", "workers", "asked", "expected"),
    [(0, 2, "auto", "gloo"), (2, 2, "auto", "nccl"), (4, 2, "auto", "nccl"), (2, 4, "gloo", "gloo")],
)
def test_backend(gpus: int, workers: int, asked: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    worker = Worker(1, workers, 1, workers, under_torchrun=True)
    assert worker.backend(asked) == expected  # type: ignore[arg-type]
    assert worker.device(asked) == torch.device("cuda:1" if expected == "nccl" else "cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(("gpus", "asked"), [(1, "auto"), (0, "nccl")])
def test_more_workers_than_gpus_is_refused(gpus: int, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UserError, match=rf"2 workers on a machine with {gpus} GPUs; each needs its own: start 1, or"):
        Worker(0, 2, 0, 2).backend(asked)  # type: ignore[arg-type]


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`... --list | head`: no traceback, no exit code of a fault."""
    code = "from dynsparse.runtime import print_to_reader\nfor _ in range(50000): print_to_reader('line')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 0


def test_the_first_on_a_machine_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    assert [speaks_first(), speaks_first()] == [True, True], "alone, always"
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    spoken = []
    for rank in ("1", "0", "1"):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / rank / "error.json"))
        spoken.append(speaks_first())
    assert spoken == [True, False, False]
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/nowhere/at/all/error.json")
    assert speaks_first(), "better twice than never"
