"""torchrun over several hosts: limited links, a host that vanishes, a link that drops."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dynsparse.config.schema import RunConfig
from tests.hosts import PORT, ROOT, Hosts, why_not
from tests.training import runs

FAULTY_RUN = ROOT / "tests/training/faulty_run.py"
LIMIT_SECONDS = 120


@pytest.fixture(autouse=True)
def _hosts_can_be_had() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


def small_run(folder: Path, name: str, **distributed: Any) -> RunConfig:
    """24 steps: 3 epochs of 8. What travels is settled: else the clock decides it."""
    return runs.config(
        name=name,
        runs=str(folder),
        train={"epochs": 3},
        checkpoint={"every_steps": 3, "keep": 3},
        distributed={"gradients": "active", **distributed},
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by two workers of this machine."""
    folder = tmp_path_factory.mktemp("here")
    settings = small_run(folder, "whole")
    done = runs.dist_train("--config", runs.write_config(folder, settings), workers=2)
    assert done.returncode == 0, done.stderr
    return settings.folder


class Launch:
    """A run over hosts, one worker each."""

    def __init__(self, hosts: Hosts, folder: Path, settings: RunConfig) -> None:
        self.hosts = hosts
        self.folder = folder
        self.settings = settings
        self.at_fault = folder / "at_fault"
        self._config = runs.write_config(folder, settings)
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, *numbers: int, faults: str = "") -> None:
        """Start torchrun on these hosts, with what faulty_run.py shall do."""
        for number in numbers:
            self.processes[number] = self.hosts.torchrun(
                number,
                *(FAULTY_RUN, "--config", self._config),
                restarts=3,
                log=self._log(number),
                FAULTS=faults,
                FAULT_FILE=str(self.at_fault),
            )

    def said(self, number: int) -> str:
        return self._log(number).read_text()

    def wait(self) -> None:
        for number, process in self.processes.items():
            assert process.wait(LIMIT_SECONDS) == 0, f"host{number}:\n{self.said(number)}"

    def until(self, number: int, what: Any) -> None:
        """Wait until `what()` holds, while a host's part of the run continues."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not what():
            assert self.processes[number].poll() is None, f"host{number} ended:\n{self.said(number)}"
            assert time.monotonic() < deadline, f"host{number}:\n{self.said(number)}"
            time.sleep(0.05)

    def _log(self, number: int) -> Path:
        return self.folder / f"host{number}.log"


def assert_same_run(actual: Path, expected: Path) -> None:
    ours, theirs = runs.summary(actual), runs.summary(expected)
    for key in ("weight_digest", "mask_digest", "rank_digests", "test_top1", "best_top1", "reallocations", "steps"):
        assert ours[key] == theirs[key], key
    assert runs.metrics(actual) == runs.metrics(expected)


@pytest.mark.slow  # tests/launch/test_node.py: two hosts are stopped, and go on as if not.
def test_two_hosts_are_as_two_workers_of_one(tmp_path: Path, undisturbed: Path) -> None:
    settings = small_run(tmp_path, "two")
    with Hosts(2) as hosts:
        launch = Launch(hosts, tmp_path, settings)
        launch.start(0, 1)
        launch.wait()
        assert hosts.bytes_sent(1) > 24 * 4 * runs.summary(settings.folder)["active_weights"]
    assert_same_run(settings.folder, undisturbed)


@pytest.mark.slow
def test_a_host_vanishes_and_comes_back(tmp_path: Path, undisturbed: Path) -> None:
    """Its new worker and the other meet again, at the last checkpoint."""
    settings = small_run(tmp_path, "vanished", timeout_seconds=10)
    with Hosts(2) as hosts:
        launch = Launch(hosts, tmp_path, settings)
        launch.start(0, 1, faults="hang 1 step 13")
        launch.until(1, launch.at_fault.exists)
        hosts.vanish(1)
        launch.processes[1].wait()
        launch.until(0, lambda: "failed (exitcode" in launch.said(0))
        hosts.come_back(1)
        launch.start(1)
        launch.wait()
        assert "(step 12)" in launch.said(0) + launch.said(1)
    assert_same_run(settings.folder, undisturbed)


@pytest.mark.slow
def test_a_link_drops_for_20_seconds(tmp_path: Path, undisturbed: Path) -> None:
    """Less than `distributed.timeout_seconds`: TCP sends again what was lost, and the run knows nothing of it."""
    settings = small_run(tmp_path, "dropped", timeout_seconds=60)
    with Hosts(2) as hosts:
        launch = Launch(hosts, tmp_path, settings)
        os.mkfifo(f"{launch.at_fault}.go_on")
        launch.start(0, 1, faults="wait 1 step 13")
        launch.until(1, launch.at_fault.exists)
        hosts.link_down(1)
        Path(f"{launch.at_fault}.go_on").write_bytes(b"")
        time.sleep(20)  # The outage.
        assert len(runs.metrics(settings.folder)) < len(runs.metrics(undisturbed)), "nothing went on"
        hosts.link_up(1)
        launch.wait()
        assert "resuming from" not in launch.said(0) + launch.said(1)
    assert_same_run(settings.folder, undisturbed)


@pytest.mark.slow
def test_four_hosts_agree(tmp_path: Path) -> None:
    settings = small_run(tmp_path, "four")
    with Hosts(4) as hosts:
        launch = Launch(hosts, tmp_path, settings)
        launch.start(0, 1, 2, 3)
        launch.wait()
    ranks = runs.summary(settings.folder)["rank_digests"]
    assert len(ranks) == 4
    assert len({rank["weight_digest"] for rank in ranks}) == len({rank["mask_digest"] for rank in ranks}) == 1


SEND = """
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60).sendall(bytes(int(sys.argv[3])))
"""
RECEIVE = """
import socket, sys, time
server = socket.create_server(("", int(sys.argv[1])))
print("ready", flush=True)
connection, _ = server.accept()
began, count = time.monotonic(), 0
while part := connection.recv(1 << 20):
    count += len(part)
print(count, time.monotonic() - began)
"""


@pytest.mark.parametrize(("sender", "receiver"), [(0, 1), (1, 0)])
def test_the_rate_of_a_link_is_what_it_says(sender: int, receiver: int) -> None:
    amount = 4_000_000
    with Hosts(2, rate="100mbit") as hosts:
        receiving = hosts[receiver].start(sys.executable, "-c", RECEIVE, PORT)
        assert receiving.stdout is not None
        assert receiving.stdout.readline() == "ready\n"
        sending = hosts[sender].start(sys.executable, "-c", SEND, hosts[receiver].name, PORT, amount)
        assert sending.communicate(timeout=60) == ("", None)
        count, seconds = receiving.communicate(timeout=60)[0].split()
        assert int(count) == amount
        # Two bursts may be through at once: the sender's and the switch's.
        assert float(seconds) > 0.9 * amount / (100e6 / 8)
        assert amount < hosts.bytes_sent(sender) < 1.1 * amount


def test_nothing_is_left() -> None:
    """Neither processes nor interfaces, also after an error."""
    before = sorted(os.listdir("/sys/class/net"))
    started: list[subprocess.Popen[str]] = []
    with pytest.raises(RuntimeError, match="of the test"):
        fail_with_processes(started)
    for process in started:
        assert process.wait(LIMIT_SECONDS) != 0
        assert process.stdout is not None
        assert process.stdout.read() == "", "no process has the pipe any more"
    assert sorted(os.listdir("/sys/class/net")) == before


def fail_with_processes(started: list[subprocess.Popen[str]]) -> None:
    with Hosts(2) as hosts:
        for number in range(2):
            # In a session of its own, as torchrun's workers.
            process = hosts[number].start("sh", "-c", "setsid sleep 1000 & echo started; wait")
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            started.append(process)
        raise RuntimeError("of the test")
