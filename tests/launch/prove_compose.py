"""Runs launch/compose.yaml with a Docker engine and tries what it promises.

`python3 -m tests.launch.prove_compose` needs docker with Compose 2. It builds the image unless there is one
(`docker build -t dynsparse .`). The training service runs on the CPU: it omits the GPUs, and the limit on pinned
memory, which not every engine may lift.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

from tests.launch.prove_image import ROOT, give, timed

ON_THE_CPU = "services: {train: {deploy: !reset null, ulimits: !reset null}}\n"


def compose_tool() -> list[str] | None:
    """Compose 2 or later, as a plugin of docker or by itself."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]):
            version = subprocess.run([*words, "version"], capture_output=True, text=True, check=False)
            if re.search(r"version v?[2-9]", version.stdout):
                return words
    return None


class Compose:
    """The project of compose.yaml, with folders of its own for data and runs."""

    def __init__(self, tool: list[str], folder: Path) -> None:
        self.runs = folder / "runs"
        give(self.runs, 1000)
        (folder / "data").mkdir()
        (folder / "cpu.yaml").write_text(ON_THE_CPU)
        files = [f"--file={ROOT}/launch/compose.yaml", f"--file={folder}/cpu.yaml", "--profile=two-nodes"]
        self.tool = [*tool, "--project-name=dynsparse-proof", *files]
        settings = {"DATA": str(folder / "data"), "RUNS": str(self.runs), "CONFIG": "configs/digits_dsr.yaml"}
        self.environment = {**os.environ, **settings}

    def __call__(self, *words: str, **settings: str) -> str:
        result = self.process(*words, **settings)
        assert result.returncode == 0, f"{words}: {result.stdout}{result.stderr}"
        return result.stdout

    def process(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in {**self.environment, **settings}.items() if value}
        return subprocess.run([*self.tool, *words], env=environment, capture_output=True, text=True, check=False)

    def state(self, service: str) -> dict[str, object]:
        """State of the service's container: Status, ExitCode, Health."""
        container = self("ps", "--all", "--quiet", service).strip()
        printed = subprocess.run(
            ["docker", "inspect", "--format", "{{json .State}}", container], capture_output=True, text=True, check=True
        )
        state: dict[str, object] = json.loads(printed.stdout)
        return state


def main() -> int:
    tool = compose_tool()
    if tool is None or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        print("error: there is no Docker engine with Compose 2; install both, or set DOCKER_HOST", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="dynsparse-compose-", dir="/var/tmp"))
    compose = Compose(tool, folder)
    try:
        for step in (no_data, two_nodes, training_and_tensorboard):
            with timed(step.__name__.replace("_", " ")):
                step(compose)
    finally:
        compose.process("down", "--timeout", "0")
        shutil.rmtree(folder)
    return 0


def no_data(compose: Compose) -> None:
    refused = compose.process("up", "train", DATA="")
    print(f"     {refused.stderr.strip()}")
    assert refused.returncode != 0
    assert refused.stderr.count("\n") == 1


def two_nodes(compose: Compose) -> None:
    compose("up", "node0", "node1", ARGUMENTS="train.epochs=20")
    summary = json.loads((compose.runs / "two_nodes/summary.json").read_text())
    assert (summary["status"], summary["world_size"]) == ("done", 2), summary
    for name in ("node0", "node1"):
        assert compose.state(name)["ExitCode"] == 0, name
    print(f"     two workers on two nodes: {summary['test_top1']:.2f} %")


def training_and_tensorboard(compose: Compose) -> None:
    """Both healthy; a second run in the same folder refused; stopped with a checkpoint, started again, it goes on."""
    endless = {"ARGUMENTS": "name=endless train.epochs=100000 log.progress=lines"}
    compose("up", "--detach", "train", "tensorboard", **endless)
    until(lambda: "epoch 2/" in compose("logs", "train"))
    second = compose.process("run", "--rm", "train", **endless)
    said = [line for line in second.stderr.splitlines() if line.startswith("error: ")]
    print(f"     a second one: {second.returncode}, {' '.join(said)}")
    assert second.returncode == 2, second
    assert len(said) == 1, second
    for name in ("train", "tensorboard"):
        until(lambda name=name: compose.state(name)["Health"]["Status"] == "healthy")  # type: ignore[index,misc]
    with urlopen("http://127.0.0.1:6006/") as answer:
        assert answer.status == 200
    compose("stop", "train", "tensorboard", **endless)
    print(f"     docker compose stop: {compose.state('train')['ExitCode']}")
    assert compose.state("train")["ExitCode"] == 75
    compose("start", "train", **endless)
    until(lambda: "resuming from runs/endless/checkpoints/step-" in compose("logs", "train"))


def until(true: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it has not come to that"
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
