"""Several machines by hand: hosts are namespaces of this one, each with a network and an /etc/hosts of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dynsparse.config.schema import RunConfig
from tests.hosts import Host, Hosts, why_not
from tests.launch import ports
from tests.training import runs

SCRIPT = runs.ROOT / "launch/node.sh"
TWO = ("--nodes", "2", "--id", "job-1")


def node(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)],
        env={**os.environ, "PYTHON": sys.executable, "GLOO_SOCKET_IFNAME": "lo", **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def assert_one_line(result: subprocess.CompletedProcess[str], *parts: str, code: int = 2) -> None:
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr


def test_help() -> None:
    result = node("--help")
    assert result.returncode == 0
    for word in ("usage: launch/node.sh", "--nodes MIN:MAX", "--is-head", "GLOO_SOCKET_IFNAME", "--wait"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--nodes is missing; say how many machines"),
        (["--nodes"], "--nodes lacks its number"),
        (["--nodes", "two"], "--nodes is 'two'; it must be a number of at least 1, or MIN:MAX"),
        (["--nodes", "3:2"], "--nodes is '3:2'"),
        (["--nodes", "0"], "--nodes is '0'"),
        (["--nodes", "2"], "--head is missing; name the node"),
        (["--nodes", "2", "--head"], "--head lacks its value"),
        (["--nodes", "2", "--head", "a"], "--id is missing; give what no other launch has"),
        ([*TWO[:3], "a b", "--head", "a"], "--id is 'a b'; it must be of letters"),
        ([*TWO, "--head", "a"], "nothing to run"),
        ([*TWO, "--head", "a", "--is-head", "1"], "--is-head is '1'; it must be auto, yes or no"),
        ([*TWO, "--head", "a", "--wait", "0"], "--wait is '0'; it must be a number of seconds"),
        ([*TWO, "--head", "a", "--workers", "demo"], "--workers is 'demo'; it must be auto or a number of at least 1"),
        ([*TWO, "--head", "a", "--restarts", "x"], "--restarts is 'x'; it must be a number, 0 for none"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    assert_one_line(node(*arguments), message)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (f"{'a' * 64}.example", "cannot be resolved on"),
        ("localhost", "--head localhost is 127.0.0.1, on each node the node itself; give the head's name"),
        ("127.0.0.1:29501", "--head 127.0.0.1 is 127.0.0.1, on each node the node itself"),
        ("a:99999", "--head is 'a:99999'; it must be HOST or HOST:PORT, with a port of 1 to 65535"),
        ("a b", "--head is 'a b'"),
    ],
)
def test_bad_heads(head: str, message: str) -> None:
    assert_one_line(node(*TWO, "--head", head, "--config", "x"), message)


@pytest.fixture(scope="module")
def meeting() -> ModuleType:
    spec = spec_from_file_location("meeting", SCRIPT.with_name("meeting.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("failures", "code"), [(0, None), (3, None), (99, 1)])
def test_a_name_server_that_does_not_answer_is_asked_again(
    failures: int, code: int | None, meeting: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """While a pod's network comes up. Code 1: whoever starts the launcher may try again."""
    now, answers = [0.0], iter([False] * failures + [True])

    def ask(*_: Any, **__: Any) -> list[Any]:
        if next(answers):
            return [(0, 0, 0, "", ("192.0.2.1", 0))]
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(meeting.socket, "getaddrinfo", ask)
    monkeypatch.setattr(
        meeting, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.append(now.pop() + s))
    )
    if code is None:
        assert meeting.resolve("head") == ["192.0.2.1"]
        assert now == [failures / 2]
        return
    with pytest.raises(SystemExit) as end:
        meeting.resolve("head")
    assert end.value.code == code
    assert "--head head cannot be resolved" in capsys.readouterr().err


def test_a_name_that_does_not_exist_is_bad_input(meeting: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(meeting.socket, "getaddrinfo", ask)
    with pytest.raises(SystemExit) as end:
        meeting.resolve("nowhere.invalid")
    assert end.value.code == 2


@pytest.mark.parametrize("words", [["--workers", "4"], ["--workers=4"]])
def test_words_of_the_launcher_behind_those_of_training_are_refused(words: list[str]) -> None:
    assert_one_line(node(*TWO, "--head=a", "--config", "x", *words), "stands after arguments of dist_train.py")


@pytest.fixture
def port() -> Iterator[int]:
    """One that is in use: nobody else can listen there, and nobody answers."""
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        yield used.getsockname()[1]


def test_a_port_in_use(port: int) -> None:
    result = node("--nodes", "1", "--id", "a", "--head", f"127.0.0.1:{port}", "--config", "x")
    assert_one_line(result, f"port {port} of {socket.gethostname()}, the head, cannot be had (Address already in use)")


@pytest.mark.slow  # test_local.py has the launchers' common check.
def test_bad_input_is_said_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ("--nodes", "1", "--id", "a", "--head", f"localhost:{port}", "--")
    assert_one_line(node(*meeting, "--config", tmp_path / "no.yaml"), "no.yaml: cannot be read")
    path = runs.write_config(tmp_path, runs.config(runs=str(tmp_path), name="a"))
    missing = "data={name: imagenet, path: /nowhere, number_of_classes: 2, image_size: 32}"
    network = "model={name: imagenet_resnet50}"
    assert_one_line(node(*meeting, "--config", path, missing, network), "data.path: /nowhere")


def test_a_head_that_does_not_answer(tmp_path: Path, port: int) -> None:
    """It is asked once the input is found to be in order, which is taken for granted here."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\ncase $* in *--check*) exit ;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    meeting = ("--head", f"127.0.0.1:{port}", "--is-head", "no", "--wait", "1", "--workers", "1")
    result = node(*TWO, *meeting, "--config", "x", PYTHON=str(python))
    assert_one_line(result, f"--head 127.0.0.1:{port} does not answer within 1 s", "start launch/node.sh there", code=1)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    subprocess.run(["shellcheck", "--external-sources", f"--source-path={runs.ROOT}", str(SCRIPT)], check=True)


# -- over two hosts --------------------------------------------------------------------------------


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Two, which know themselves as Debian's installer has it: by an address that no other can reach."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with Hosts(2) as hosts:
        for number in range(2):
            others = f"{hosts[1 - number].address} {hosts[1 - number].name}"
            names = tmp_path / f"hosts_{number}"
            names.write_text(f"127.0.0.1 localhost\n127.0.1.1 {hosts[number].name}\n{others}\n")
            assert hosts[number].start("mount", "--bind", names, "/etc/hosts").wait() == 0
        yield hosts


class Node:
    """launch/node.sh on a host."""

    def __init__(self, host: Host, config: Path, *arguments: str, id: str = "job-1") -> None:  # noqa: A002
        meeting = ("--nodes", 2, "--head", "host0", "--id", id, "--workers", 1, "--")
        self.process = host.start(
            *("bash", SCRIPT, *meeting, "--config", config, *arguments), PYTHON=sys.executable, GLOO_SOCKET_IFNAME=""
        )
        self.said = ""

    def until(self, beginning: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if line.startswith(beginning):
                return
        raise AssertionError(f"ended without a line of {beginning}:\n{self.said}")

    def signal(self, number: signal.Signals) -> None:
        (script,) = runs.children(self.process.pid)  # of nsenter, which has entered the host
        os.kill(script, number)

    def code(self) -> int:
        self.said += self.process.communicate(timeout=200)[0]
        return self.process.returncode


def small_run(folder: Path, name: str) -> RunConfig:
    return runs.config(name=name, runs=str(folder), train={"epochs": 30}, log={"progress": "lines"})


@pytest.mark.slow  # test_elastic.py has machines that come and go.
@pytest.mark.parametrize("later", [1, 2])
def test_two_hosts_are_stopped_and_the_run_goes_on_as_if_not(tmp_path: Path, hosts: Hosts, later: int) -> None:
    """It goes on with as many workers, on one machine or on two."""
    settings, whole = small_run(tmp_path, "stopped"), small_run(tmp_path, "whole")
    assert runs.dist_train("--config", runs.write_config(tmp_path, whole), workers=2).returncode == 0
    config = runs.write_config(tmp_path, settings)

    nodes = [Node(hosts[number], config) for number in range(2)]
    for each in nodes:
        each.until("note: ")
        assert "knows itself by no address that others can reach; GLOO_SOCKET_IFNAME is net0" in each.said
    nodes[1].until("epoch 1/")
    for number in range(2):
        assert set(ports.listening(hosts[number].first).values()) == {hosts[number].address}
    # torchrun orders nodes by name or address, as text: "10.77.0.2" before "host0".
    for each in nodes:
        each.signal(signal.SIGTERM)
    assert [each.code() for each in nodes] == [75, 75], "".join(each.said for each in nodes)
    assert runs.summary(settings.folder)["status"] == "stopped"

    if later == 1:
        assert runs.dist_train("--config", config, "--resume", "auto", workers=2).returncode == 0
    else:
        nodes = [Node(hosts[number], config, "--resume", "auto", id="job-2") for number in range(2)]
        assert [each.code() for each in nodes] == [0, 0], "".join(each.said for each in nodes)
    ours, theirs = runs.summary(settings.folder), runs.summary(whole.folder)
    for key in ("status", "world_size", "steps", "mask_digest", "weight_digest", "rank_digests", "test_top1"):
        assert ours[key] == theirs[key], key
    assert runs.metrics(settings.folder) == runs.metrics(whole.folder)


@pytest.mark.slow
def test_a_signal_to_one_stops_all(tmp_path: Path, hosts: Hosts) -> None:
    settings = small_run(tmp_path, "a")
    config = runs.write_config(tmp_path, settings)
    nodes = [Node(hosts[number], config, "train.epochs=100000") for number in range(2)]
    nodes[1].until("epoch 1/")
    nodes[0].signal(signal.SIGUSR1)
    assert [each.code() for each in nodes] == [75, 75], "".join(each.said for each in nodes)
    assert runs.summary(settings.folder)["status"] == "stopped"
