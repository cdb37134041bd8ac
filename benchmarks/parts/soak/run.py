"""A run over two hosts that is kept alive, and launches of it on one host. benchmarks/soak.py strikes them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.hosts import ROOT, Host, Hosts
from tests.storage import Storage
from tests.training import runs

PATIENCE_SECONDS = 300
RESTARTS = 1000  # torchrun counts over a launch's whole life.


def options(folder: Path, name: str, epochs: int, timeout: int = 10) -> list[str]:
    # Dense: the choice of `auto` would be the clock's, and the link is to be slow for its burst to be used up.
    return [
        *("--config", str(ROOT / "configs/digits_dsr.yaml"), f"runs={folder}", f"name={name}"),
        *(f"train.epochs={epochs}", "checkpoint.every_steps=1", "checkpoint.keep=3", "log.progress=none"),
        *(f"distributed.timeout_seconds={timeout}", "distributed.gradients=dense"),
    ]


def descendants(pid: int) -> list[int]:
    """List all processes that come from a process, those that have started others first."""
    found = runs.children(pid)
    return [*found, *(one for child in found for one in descendants(child))]


def _send(kind: signal.Signals, *processes: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, kind)


class Launch:
    """The run on one host, two workers, by launch/local.sh: launcher, torchrun and workers can be held for a while.

    Who stands still for a minute has not failed, so workers wait for each other as long as they do by default.
    """

    def __init__(self, host: Host, folder: Path, epochs: int, log: Path) -> None:
        self.log = log
        command = (ROOT / "launch/local.sh", "--workers", 2, "--", *options(folder, "soak", epochs, timeout=300))
        self.process = host.start(*command, "--resume", "auto", log=log)

    def stand_still(self) -> None:
        _send(signal.SIGSTOP, *self._all())

    def wake(self) -> None:
        _send(signal.SIGCONT, *self._all())

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the launcher, as schedulers do."""
        _send(signal.SIGTERM, *runs.children(self.process.pid))

    def wait(self) -> int | None:
        """Wait for the launcher. Returns its exit code; None if it does not end."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            _send(signal.SIGCONT, self.process.pid)  # nsenter stops itself some time after the launcher was stopped.
            time.sleep(0.1)
        return self.process.poll()

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def kill(self) -> None:
        if self.process.poll() is None:
            _send(signal.SIGKILL, *self._all())
        self.process.wait()

    def _all(self) -> list[int]:
        """List all its processes, and nsenter, which tells how the launcher ended."""
        return [self.process.pid, *descendants(self.process.pid)]


class Run:
    """A training run over two hosts that is kept alive."""

    def __init__(self, hosts: Hosts, storage: Storage, folder: Path, epochs: int) -> None:
        self.hosts = hosts
        self.storage = storage
        self.epochs = epochs
        self.folder = storage.inside / "soak"
        self.command = [ROOT / "dist_train.py", *options(storage.path, "soak", epochs), "--resume", "auto"]
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.launches: list[Launch] = []
        self.started = 0

    def keep_alive(self) -> None:
        """Start what is not running."""
        for number in (0, 1):
            process = self.processes.get(number)
            if process is None or process.poll() not in (None, 0):
                self.started += 1
                self.processes[number] = self.hosts.torchrun(
                    number, *self.command, restarts=RESTARTS, log=self.logs / f"host{number}"
                )

    def stop(self) -> None:
        """Send SIGTERM to torchrun on both hosts. Returns when they have ended."""
        for process in self.processes.values():
            _send(signal.SIGTERM, *runs.children(process.pid))
        for process in self.processes.values():
            process.wait()

    def launch(self, number: int) -> Launch:
        """Start the run on one host alone."""
        log = self.logs / f"launch{len(self.launches)}"
        self.launches.append(Launch(self.hosts[number], self.storage.path, self.epochs, log))
        return self.launches[-1]

    @property
    def is_over(self) -> bool:
        return (self.folder / "summary.json").exists() and self.summary()["status"] == "done"

    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return content

    def newest(self) -> Path | None:
        return max((self.folder / "checkpoints").glob("step-*.pt"), default=None)

    def step(self) -> int:
        newest = self.newest()
        return -1 if newest is None else int(newest.stem.removeprefix("step-"))

    def holder(self) -> tuple[str, int] | None:
        """Return the host of the process that holds the folder, and its number there."""
        with contextlib.suppress(OSError, ValueError):
            content = json.loads((self.folder / "lock.json").read_text())
            return content["host"], content["process"]
        return None

    def content(self) -> dict[str, str]:
        """Hash each file in the folder."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): sha256(path.read_bytes()).hexdigest() for path in files}

    def until(self, what: Callable[[], bool], *, alive: bool = True) -> None:
        """Wait until it holds or the run is over. SystemExit with the end of the logs if nothing happens for long."""
        latest, since = self.step(), time.monotonic()
        while not what() and not self.is_over:
            if alive:
                self.keep_alive()
            if (step := self.step()) != latest:
                latest, since = step, time.monotonic()
            if time.monotonic() - since > PATIENCE_SECONDS:
                raise SystemExit(f"error: no progress in {PATIENCE_SECONDS} s\n{self.said()[-5000:]}")
            time.sleep(0.02)

    def codes(self) -> list[int | None]:
        """Wait for torchrun on both hosts, once the run is over. Returns their exit codes."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes.values()):
            time.sleep(0.1)
        return [process.poll() for process in self.processes.values()]

    def said(self) -> str:
        return "".join(path.read_text() for path in sorted(self.logs.iterdir()))

    def workers(self) -> list[int]:
        """List the workers' process numbers, as this machine counts."""
        found = []
        for process in self.processes.values():
            for torchrun in runs.children(process.pid):
                found += runs.children(torchrun)
        return found

    def end(self) -> None:
        for launch in self.launches:
            launch.kill()
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
