"""Small runs for tests: configs, trainers, and dist_train.py as a process."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import pipelines
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.runtime import Worker
from dynsparse.shrinking.kept import Shrinkage
from dynsparse.training.building import data_request
from dynsparse.training.callbacks import Callback
from dynsparse.training.checkpoint import CheckpointFolder
from dynsparse.training.first_masks import scored
from dynsparse.training.network import build_network
from dynsparse.training.trainer import Trainer
from tests import forks

ROOT = Path(__file__).parents[2]

BASE: dict[str, Any] = {
    "seed": 3,
    "model": {"name": "mnist_mlp", "hidden": [24, 12]},
    "sparsity": {"conv": 0.7, "fc": 0.8},
    "method": {"name": "dsr", "period": 3, "initial_threshold": 0.02, "target_moves": 30},
    "data": {"name": "synthetic", "shape": [1, 6, 6], "samples": 100, "test_samples": 50, "threads": 1},
    "train": {"epochs": 2, "global_batch_size": 12, "lr": {"name": "steps", "table": 0.05}},
    "log": {"every_steps": 4, "progress": "none"},
}


def config(**sections: Any) -> RunConfig:
    """Return BASE with some keys of some sections replaced, such as `train={"epochs": 1}`."""
    raw = copy.deepcopy(BASE)
    for name, value in sections.items():
        if isinstance(value, dict) and "name" not in value:
            raw[name] = {**raw.get(name, {}), **value}
        else:
            raw[name] = value
    return loading.parse(raw)


def trainer(
    settings: RunConfig,
    worker: Worker | None = None,
    observers: list[Callback] | None = None,
    checkpoints: CheckpointFolder | None = None,
    shrinkages: Sequence[Shrinkage] = (),
    **options: Any,
) -> Trainer:
    """A trainer over real pipelines, in this process."""
    worker = worker or Worker()
    request = replace(data_request(settings, worker), device_id=None)
    data = pipelines.build(settings.data, request)
    network = scored(settings, build_network(settings, torch.device("cpu"), shrinkages=shrinkages), data, worker)
    return Trainer(settings, network, data, worker, observers=observers or [], checkpoints=checkpoints, **options)


def write_config(folder: Path, settings: RunConfig) -> Path:
    path = folder / "config.yaml"
    path.write_text(settings.as_yaml())
    return path


def dist_train(
    *arguments: Any, workers: int = 0, max_restarts: int = 0, script: Path = ROOT / "dist_train.py", **environment: str
) -> Any:
    """Run dist_train.py to its end, under torchrun if `workers` is not 0. Forked: see tests/forks.py."""
    options = ["--standalone", "--nproc-per-node", workers, "--max-restarts", max_restarts]
    launcher = [*TORCHRUN[1:], *options] if workers else []
    return python(*launcher, script, *arguments, **environment)


def python(*words: Any, limit: float = 200, at: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` to its end in the folder `at`, forked. Nothing that it starts outlives the call."""
    words = tuple(map(str, words))
    with TemporaryDirectory() as folder:
        out, err = Path(folder) / "stdout", Path(folder) / "stderr"
        process = forks.python(words, at, _environment(environment), out, err)
        process.start()
        try:
            process.join(limit)
            assert process.exitcode is not None, f"{words} did not end:\n{out.read_text()}{err.read_text()}"
        finally:
            kill(process)
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def start(command: Sequence[Any], **environment: str) -> subprocess.Popen[str]:
    """Start a command as a test needs it. To be ended with `kill`."""
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=_environment(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are there: of torchrun, its workers."""
    of_threads = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for child in " ".join(of_threads).split()]


def kill(process: Any) -> None:
    """End a process and its workers at once (SIGKILL), as when their machine goes down. torchrun's are no group."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGSTOP)  # It is not to start another in the meantime.
        for pid in [process.pid, *children(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, less what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("timing", None)
    return lines


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


@contextlib.contextmanager
def nobody_if_root() -> Iterator[None]:
    """Be nobody if the process is root's, since root may write anywhere. It stays in root's groups."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
