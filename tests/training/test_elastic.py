"""Machines that leave and join: torchrun starts the workers anew, as many as there are then, and the run goes on.

Two launches of torchrun on this machine stand for two machines of one worker each.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from dynsparse.training.callbacks.metrics_file import MetricsFile
from tests.training import runs

FAULTY_RUN = Path(__file__).with_name("faulty_run.py")
# A machine that no longer answers is given up after a few seconds, and the others wait as long for more to come.
RENDEZVOUS = "is_host=false,keep_alive_interval=1,keep_alive_max_attempt=4,last_call_timeout=4,join_timeout=200"


class Machines:
    """They meet at a store in this process, which none takes with it. A machine's end is SIGKILL to all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = runs.config(runs=str(folder), name="elastic", checkpoint={"every_steps": 3, "keep": 3})
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.there: list[subprocess.Popen[str]] = []
        self.pipes: list[int] = []

    def add(self, fault: str, nodes: str = "1:2") -> tuple[subprocess.Popen[str], int]:
        """One more, and the pipe (a file descriptor) in which it says that its fault happens."""
        path = self.folder / f"fault_{len(self.there)}"
        os.mkfifo(path)
        self.pipes.append(os.open(path, os.O_RDWR))  # For writing too, so that nobody waits for a reader.
        options = [
            *(
                f"--nnodes={nodes}",
                "--nproc-per-node=1",
                "--max-restarts=3",
                "--rdzv-backend=c10d",
                "--rdzv-id=elastic",
            ),
            *(f"--rdzv-endpoint=127.0.0.1:{self.store.port}", f"--rdzv-conf={RENDEZVOUS}", "--local-addr=127.0.0.1"),
        ]
        config = ["--config", runs.write_config(self.folder, self.settings)]
        environment = {"FAULTS": fault, "FAULT_FILE": str(path), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        self.there.append(runs.start([*runs.TORCHRUN, *options, FAULTY_RUN, *config], **environment))
        return self.there[-1], self.pipes[-1]

    def require_finished(self, machine: subprocess.Popen[str]) -> None:
        _, said = machine.communicate(timeout=200)
        assert machine.returncode == 0, said


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    machines = Machines(tmp_path)
    yield machines
    for machine in machines.there:
        runs.kill(machine)
        machine.communicate()
    for pipe in machines.pipes:
        os.close(pipe)


@pytest.fixture
def undisturbed(tmp_path: Path, machines: Machines) -> list[dict[str, Any]]:
    """The metrics of a run of one worker."""
    runs.trainer(machines.settings, observers=[MetricsFile(tmp_path / "metrics.jsonl")]).fit()
    return runs.metrics(tmp_path)


def assert_as_planned(folder: Path, undisturbed: list[dict[str, Any]]) -> None:
    """Check what does not depend on the number of workers: sums differ in their last bits."""
    keys = ("kind", "epoch", "step", "lr", "budget", "active_weights", "sparsity")
    actual = [{key: line.get(key) for key in keys} for line in runs.metrics(folder)]
    assert actual == [{key: line.get(key) for key in keys} for line in undisturbed]


@pytest.mark.slow
def test_a_machine_leaves(machines: Machines, undisturbed: list[dict[str, Any]]) -> None:
    """One is killed in the middle of a step; the other resumes alone, from the last checkpoint."""
    stays, _ = machines.add("alone any step 2")
    leaves, happens = machines.add("hang any step 11")
    assert os.read(happens, 1) in (b"0", b"1")
    runs.kill(leaves)
    machines.require_finished(stays)
    summary = runs.summary(machines.settings.folder)
    assert (summary["status"], summary["world_size"]) == ("done", 1)
    assert_as_planned(machines.settings.folder, undisturbed)


@pytest.mark.slow
def test_a_machine_joins(machines: Machines, undisturbed: list[dict[str, Any]]) -> None:
    """One trains alone; when another comes it saves, and both go on together."""
    first, happens = machines.add("alone any step 11")
    assert os.read(happens, 1) == b"0"
    second, _ = machines.add("")
    machines.require_finished(first)
    machines.require_finished(second)
    summary = runs.summary(machines.settings.folder)
    assert (summary["status"], summary["world_size"]) == ("done", 2)
    assert len({rank["weight_digest"] for rank in summary["rank_digests"]}) == 1
    assert_as_planned(machines.settings.folder, undisturbed)


@pytest.mark.slow
def test_a_stop_asked_of_one_machine_ends_all(machines: Machines) -> None:
    """None starts a worker again, which would wait for those of the others."""
    for machine in [machines.add("SIGUSR1 1 step 5", nodes="2")[0] for _ in range(2)]:
        _, said = machine.communicate(timeout=100)
        assert machine.returncode == 1, said  # torchrun's, whatever a worker did
        assert "resuming from" not in said
    summary = runs.summary(machines.settings.folder)
    assert (summary["status"], summary["world_size"]) == ("stopped", 2)
