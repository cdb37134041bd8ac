from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch.distributed import FileStore, Store, TCPStore

from dynsparse.errors import UserError
from dynsparse.runtime import Worker, _meet, lost_peer, require_own_gpus
from tests.ranks import run_distributed
from tests.training.runs import ROOT


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
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match=rf"2 workers on a machine with {gpus} GPUs; each needs its own: start 1, or"):
        Worker(0, 2, 0, 2).backend(asked)  # type: ignore[arg-type]


def test_each_worker_may_see_one_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand for a worker of `srun --gpus-per-task=1`, to which its GPU is number 0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    worker = Worker(3, 4, 3, 4, under_torchrun=True)
    assert worker.backend("auto") == worker.backend("nccl") == "nccl"
    assert worker.device("auto") == torch.device("cuda:0")


def gpus_seen(worker: Worker, gpus: Sequence[str]) -> str:
    with patch("torch.cuda.get_device_properties", lambda device: SimpleNamespace(uuid=gpus[worker.rank])):
        try:
            require_own_gpus(torch.device("cuda:0"))
        except UserError as error:
            return str(error)
    return ""


def test_workers_with_the_same_gpu_are_refused_on_all_of_them() -> None:
    assert run_distributed(gpus_seen, 3, ["a", "b", "c"]) == ["", "", ""]
    refusals = run_distributed(gpus_seen, 3, ["a", "b", "a"])
    assert len(set(refusals)) == 1
    assert refusals[0] == (
        f"workers 0 and 2 have the same GPU of {socket.gethostname()} (a); each needs its own: give each worker "
        "another CUDA_VISIBLE_DEVICES, start fewer, or set distributed.backend=gloo to train on the CPU"
    )


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`... --list | head`: no traceback, no exit code of a fault."""
    code = "from pipelines.common import streams\nstreams.make_safe()\nfor _ in range(50000): print('line', flush=True)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 0


@pytest.fixture(params=["file", "torchrun's store"])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Address at which workers meet."""
    if request.param == "file":
        monkeypatch.setenv("DYNSPARSE_MEETING", str(tmp_path / "meeting"))
        return FileStore(str(tmp_path / "meeting"))
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    return server


def test_workers_meet_where_no_earlier_attempt_has_written(server: Store) -> None:
    """Three workers, after an attempt that left its hellos and addresses behind."""
    timeout = timedelta(seconds=60)
    parts = set()
    for attempt in range(2):
        server.set("dynsparse/hello/1", f"left behind {attempt}")
        with ThreadPoolExecutor(3) as pool:
            workers = [Worker(rank, 3, rank, 3, under_torchrun=True) for rank in range(3)]
            stores = [store for store in pool.map(lambda worker: _meet(worker, timeout), workers) if store]
        assert len(stores) == 3
        assert not any(store.check(["address"]) for store in stores)
        stores[1].set("address", str(attempt))
        assert [store.get("address").decode() for store in stores] == [str(attempt)] * 3
        parts.add(stores[0].get("address"))
    assert len(parts) == 2


def test_a_worker_that_does_not_come_is_named(server: Store) -> None:
    server.set("dynsparse/hello/1", "left behind")
    with pytest.raises(RuntimeError, match=r"workers \[1\] have not come within 0\.1 s"):
        _meet(Worker(0, 2, 0, 2, under_torchrun=True), timedelta(seconds=0.1))


def test_a_lost_peer_is_told_from_other_errors() -> None:
    gloo = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:1. More."
    assert lost_peer(RuntimeError(gloo)) == "Connection closed by peer [10.0.0.2]:1"
    assert lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_peak_memory_sees_what_was_held_and_is_gone() -> None:
    script = """if True:
        import torch
        from dynsparse.runtime import peak_memory
        cpu = torch.device("cpu")
        before = peak_memory(cpu)
        torch.ones(50_000_000)  # 200 MB.
        print(peak_memory(cpu) - before)
    """
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert 190e6 < int(done.stdout) < 400e6
