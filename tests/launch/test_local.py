from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dynsparse.config.schema import RunConfig
from tests.launch import ports
from tests.training import runs

SCRIPT = runs.ROOT / "launch/local.sh"


def local(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_help() -> None:
    result = local("--help")
    assert result.returncode == 0
    assert "usage: launch/local.sh" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to run"),
        (["--workers"], "--workers lacks its number"),
        (["--workers", "two", "--config", "x"], "--workers is 'two'; it must be auto, demo or a number of at least 1"),
        (["--workers", "0", "--config", "x"], "--workers is '0'"),
        (["--workers=two", "--config", "x"], "--workers is 'two'; it must be auto, demo or a number of at least 1"),
        (
            ["--config", "x", "--workers", "4"],
            "--workers stands after arguments of dist_train.py; give --work",
        ),
        (["--config", "x", "--workers=4"], "--workers=4 stands after arguments of dist_train.py; give --work"),
        (["--restarts=-1", "--config", "x"], "--restarts is '-1'"),
        (["--restarts"], "--restarts lacks its number"),
        (["--restarts", "-1", "--config", "x"], "--restarts is '-1'; it must be a number, 0 for none"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    result = local(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_another_system_is_told_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (tmp_path / "uname").chmod(0o755)
    result = local("--", "--config", "configs/digits_dsr.yaml", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 2
    assert "it is for Linux; elsewhere torchrun --nproc-per-node N dist_train.py ... data.loader=torch" in result.stderr
    assert result.stderr.count("\n") == 1


def test_trains_from_anywhere_and_returns_the_workers_code(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a", train={"epochs": 1})
    path = runs.write_config(tmp_path, settings)
    done = local("--workers", "1", "--", "--config", path)  # With two: below, up to a signal or a fault.
    assert done.returncode == 0, done.stderr
    assert runs.summary(settings.folder)["world_size"] == 1
    refused = local("--workers", "1", "--config", path)
    assert refused.returncode == 2
    assert refused.stderr.count("exists; resume it with --resume auto") == 1, "not once an attempt"


@pytest.mark.slow  # test_trains_from_anywhere_and_returns_the_workers_code has a refusal too.
def test_bad_input_that_workers_find_is_one_line(tmp_path: Path) -> None:
    """The launcher's own check is off, as for data that differ between machines. Restarts do not repeat the error."""
    settings = runs.config(runs=str(tmp_path), name="a")
    path = runs.write_config(tmp_path, settings)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\ncase $* in *--check*) exit ;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    wrong = ("--config", path, "--resume", tmp_path / "nowhere.pt")
    refused = local("--workers", "2", "--", *wrong, PYTHON=str(python), TMPDIR=str(tmp_path))
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert not list(tmp_path.glob("dynsparse-torchrun-*")), "the log is for faults"


NAMELESS = ("unshare", "--net", "--uts", "sh", "-ec", 'echo nobody > /proc/sys/kernel/hostname; exec "$@"', "sh")


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0
    or shutil.which("unshare") is None
    or subprocess.run([*NAMELESS, "true"], capture_output=True, check=False).returncode != 0,
    reason="namespaces are not allowed here",
)
def test_trains_where_nobody_knows_the_machines_name(tmp_path: Path) -> None:
    """The machine has no name that anybody knows, like a container without a network."""
    settings = runs.config(runs=str(tmp_path), name="a", train={"epochs": 1})
    loopback = ("sh", "-ec", 'ip link set lo up 2>/dev/null || ifconfig lo up; exec "$@"', "sh")
    arguments = ("--workers", "2", "--config", runs.write_config(tmp_path, settings))
    process = runs.start([*NAMELESS, *loopback, "bash", SCRIPT, *arguments], PYTHON=sys.executable)
    try:
        _, said = process.communicate(timeout=200)
    finally:
        runs.kill(process)
    assert process.returncode == 0, said
    assert runs.summary(settings.folder)["world_size"] == 2


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    for script in (SCRIPT, runs.ROOT / "launch/torchrun.sh", runs.ROOT / ".ci/run"):
        subprocess.run(["shellcheck", "--external-sources", f"--source-path={runs.ROOT}", str(script)], check=True)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGHUP)),
    ],
    ids=lambda number: number.name,
)
def test_a_signal_stops_the_workers_and_leaves_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    """A signal to the script alone, as a supervisor sends it: torchrun and the workers end too, with code 75."""
    settings = runs.config(runs=str(tmp_path), name="a", train={"epochs": 100_000}, log={"progress": "lines"})
    path = runs.write_config(tmp_path, settings)
    process = subprocess.Popen(
        ["bash", str(SCRIPT), "--workers", "2", "--", "--config", str(path)],
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("epoch 1/"):
                break
        (agent,) = runs.children(process.pid)
        assert set(ports.of([process.pid, agent, *runs.children(agent)])) == {"127.0.0.1"}
        process.send_signal(number)
        _, rest = process.communicate(timeout=100)
        assert process.returncode == 75, rest
        assert not [line for line in rest.splitlines() if not line.startswith("epoch ")], "nothing of torchrun's"
        assert runs.summary(settings.folder)["status"] == "stopped"
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def started(
    tmp_path: Path, *arguments: str, prefix: Sequence[str] = (), **environment: str
) -> tuple[subprocess.Popen[str], RunConfig]:
    """A run without end, in its second epoch."""
    settings = runs.config(runs=str(tmp_path), name="a", train={"epochs": 100_000}, log={"progress": "lines"})
    path = runs.write_config(tmp_path, settings)
    command = [*prefix, "bash", SCRIPT, "--workers", "2", *arguments, "--", "--config", path]
    process = runs.start(command, PYTHON=sys.executable, **environment)
    wait_for(process, "epoch 1/")
    return process, settings


def wait_for(process: subprocess.Popen[str], beginning: str) -> str:
    """Read the output of the process up to a line that begins so."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(beginning):
            return said
    raise AssertionError(f"ended without a line of {beginning}")


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    return [worker for torchrun in runs.children(process.pid) for worker in runs.children(torchrun)]


def test_after_a_fault_the_workers_are_started_anew(tmp_path: Path) -> None:
    """Twice: killed, they go on from their newest checkpoint; after the last restart it is a fault.

    A worker that was killed cannot say so: the launcher names it. The other may say that it has lost a peer.
    """
    process, settings = started(tmp_path, "--restarts", "1", TMPDIR=str(tmp_path))
    killed = "worker {} on {} was killed by SIGKILL (out of memory, or by hand)"
    try:
        os.kill(workers_of(process)[0], signal.SIGKILL)
        said = wait_for(process, "resuming from")
        warning = f"warning: {killed.format(0, socket.gethostname())}; all workers start anew (restart 1 of 1)"
        assert said.splitlines().count(warning) == 1
        said += wait_for(process, "epoch ")
        os.kill(workers_of(process)[1], signal.SIGKILL)
        said += process.communicate(timeout=100)[1]
        assert process.returncode == 1
        assert not (settings.folder / "summary.json").exists()
    finally:
        end(process)
    (log,) = tmp_path.glob("dynsparse-torchrun-*.log")
    assert "Traceback" in log.read_text()
    assert said.splitlines()[-2:] == [
        f"error: {killed.format(1, socket.gethostname())}",
        f"note: torchrun's own log is {log}",
    ]
    ours = ("epoch ", "error: worker ", "warning: ", "launch ", "resuming ", "error: ", "note: ")
    assert not [line for line in said.splitlines() if not line.startswith(ours)]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["torchrun", "the launcher"])
def test_workers_do_not_train_on_without_who_started_them(tmp_path: Path, victim: str) -> None:
    """Killed, it can stop nobody any more: they save where they are, and a later start goes on from there.

    Under nohup, where a terminal that is closed stops nobody.
    """
    process, settings = started(tmp_path, prefix=["env", "--ignore-signal=HUP"])
    (agent,) = runs.children(process.pid)
    workers = [os.pidfd_open(pid) for pid in workers_of(process)]
    try:
        for pid in (process.pid, agent, *workers_of(process)):
            os.kill(pid, signal.SIGHUP)
        for _ in range(2):
            wait_for(process, "epoch ")
        os.kill(agent if victim == "torchrun" else process.pid, signal.SIGKILL)
        said = process.communicate(timeout=100)[1]
        assert process.returncode == (75 if victim == "torchrun" else -signal.SIGKILL)
        for worker in workers:
            assert select.select([worker], [], [], 60)[0], "a worker is still there"
        if victim == "torchrun":
            assert said.count("warning: torchrun is gone; the workers save and end\n") == 1
            assert "Traceback" not in said
        summary = runs.summary(settings.folder)
        assert summary["status"] == "stopped"
    finally:
        for worker in workers:
            os.close(worker)
        end(process)
    if victim == "torchrun":
        more = summary["epochs"] + 1
        assert runs.dist_train("--config", tmp_path / "config.yaml", f"train.epochs={more}", "--resume", "auto")
        assert runs.summary(settings.folder)["epochs"] == more


@pytest.mark.slow
def test_a_stop_asked_of_one_worker_ends_the_run(tmp_path: Path) -> None:
    process, settings = started(tmp_path)
    try:
        os.kill(workers_of(process)[1], signal.SIGUSR1)
        process.communicate(timeout=100)
        assert process.returncode == 75
        assert runs.summary(settings.folder)["status"] == "stopped"
    finally:
        end(process)


def fake_python(folder: Path, torchrun: str) -> Path:
    """An interpreter that has torch, finds no fault with the input, and runs these lines of bash for torchrun."""
    path = folder / "python"
    path.write_text(f"#!/bin/bash\ncase $* in -c*) echo 0; exit ;; *--check*) exit ;; esac\n{torchrun}\n")
    path.chmod(0o755)
    return path


def test_workers_get_ten_minutes_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure comes from torch itself."""
    asks = (
        "from torch.distributed.launcher.api import LaunchConfig as L; print(vars(L(1, 1, 1)).get('shutdown_timeout'))"
    )
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    python = fake_python(tmp_path, f'exec {sys.executable} -c "{asks}"')
    result = local("--workers", "1", "--", "--config", "x", PYTHON=str(python))
    if result.stdout == "None\n":
        pytest.skip("this torch always waits 30 s")
    assert (result.stdout, result.returncode) == ("600\n", 0), result.stderr
    python = fake_python(tmp_path, "echo $TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    result = local("--workers", "1", "--", "--config", "x", PYTHON=str(python), TORCH_ELASTIC_SHUTDOWN_TIMEOUT="45")
    assert result.stdout == "45\n"


@pytest.mark.parametrize("noted", ["", "1", "75"])
def test_a_stop_without_a_save_is_told(tmp_path: Path, noted: str) -> None:
    """Workers that torchrun had to kill have noted nothing; the run can be resumed nevertheless."""
    began = tmp_path / "began"
    os.mkfifo(began)
    at_the_end = f"echo -n {noted} > $DYNSPARSE_EXIT_FILE; kill $!; exit 1"
    python = fake_python(tmp_path, f"sleep 1000 &\ntrap '{at_the_end}' TERM\necho > {began}\nwait")
    process = runs.start(["bash", SCRIPT, "--workers", "1", "--", "--config", "x"], PYTHON=str(python))
    try:
        began.read_text()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 75
        assert said.splitlines() == (
            []
            if noted == "75"
            else ["warning: the workers were ended before they had saved; the run resumes from the checkpoint before"]
        )
    finally:
        end(process)


def test_workers_that_torchrun_left_behind_are_waited_for(tmp_path: Path) -> None:
    """The agent dies at once, as after a third signal. Its worker saves on, in a session of its own.

    More signals change nothing: with the launcher a container ends, and the worker in mid-save.
    """
    began, go_on = tmp_path / "began", tmp_path / "go_on"
    os.mkfifo(began)
    os.mkfifo(go_on)
    saves = f'echo > {began}; read -r _ < {go_on}; echo 75 > "$DYNSPARSE_EXIT_FILE"'
    python = fake_python(tmp_path, f"setsid bash -c '{saves}' &\nwait")
    process = runs.start(["bash", SCRIPT, "--workers", "1", "--", "--config", "x"], PYTHON=str(python))
    try:
        began.read_text()
        (torchrun,) = runs.children(process.pid)
        process.send_signal(signal.SIGTERM)
        while runs.children(process.pid) == [torchrun]:
            assert process.poll() is None
        for again in (True, False):
            waits: set[int] = set()
            while len(waits - {torchrun}) < 4:  # It looks, and sleeps, again and again.
                assert process.poll() is None
                waits.update(runs.children(process.pid))
            if again:
                process.send_signal(signal.SIGTERM)
        go_on.write_text("now\n")
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (75, "")
    finally:
        end(process)


def test_gpus_that_slurm_gave_and_torch_does_not_see(tmp_path: Path) -> None:
    result = local("--config", "x", PYTHON=str(fake_python(tmp_path, "")), SLURM_GPUS_ON_NODE="4")
    assert result.returncode == 2
    assert result.stderr.startswith("error: Slurm gave 4 GPUs, torch sees 0 on ")


@pytest.mark.slow  # `--check` itself: tests/test_dist_train.py.
def test_check_says_what_a_start_would_refuse_and_starts_nothing(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a")
    path = runs.write_config(tmp_path, settings)
    checked = local("--workers", "1", "--check", "--config", path)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert not settings.folder.exists()
    refused = local("--workers", "13", "--check", "--config", path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: train.global_batch_size is 12; each of 13 workers")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "option", [pytest.param(one, marks=pytest.mark.slow) for one in ("--help", "--dry-run", "--print-schema")]
)
def test_what_only_looks_goes_on_to_work(tmp_path: Path, option: str) -> None:
    path = runs.write_config(tmp_path, runs.config(runs=str(tmp_path), name="a"))
    result = local("--workers", "1", "--", "--config", path, option)
    assert result.returncode == 0, result.stderr
    assert (
        result.stdout.count({"--help": "usage:", "--print-schema": '"$defs"', "--dry-run": "whole model"}[option]) == 1
    )


def end(process: subprocess.Popen[str]) -> None:
    for torchrun in runs.children(process.pid):
        for pid in [torchrun, *runs.children(torchrun)]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
    runs.kill(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_before_the_workers_start_is_not_forgotten(tmp_path: Path, number: signal.Signals) -> None:
    """It comes while the script asks the interpreter for torch; nothing is started after it."""
    asked, go_on = tmp_path / "asked", tmp_path / "go_on"
    os.mkfifo(asked)
    os.mkfifo(go_on)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\necho "$@" > {asked}\nread -r _ < {go_on}\n')
    python.chmod(0o755)
    process = subprocess.Popen(
        ["bash", str(SCRIPT), "--workers", "1", "--", "--config", "x"],
        env={**os.environ, "PYTHON": str(python)},
        start_new_session=True,
    )
    try:
        assert asked.read_text().startswith("-c import ")
        process.send_signal(number)
        go_on.write_text("now\n")
        assert process.wait(timeout=60) == 75
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
