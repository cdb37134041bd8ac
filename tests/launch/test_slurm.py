"""Jobs on a real cluster of Slurm: a controller and two nodes, each a namespace with a network of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm import Cluster, why_not
from tests.training import runs

SCRIPT = runs.ROOT / "launch/slurm.sbatch"
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


def outside(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_help() -> None:
    result = outside("--help")
    assert result.returncode == 0
    for word in ("usage: sbatch", "launch/slurm.sbatch", "DYNSPARSE_SRUN", "scancel --signal=USR1"):
        assert word in result.stdout


def test_it_is_a_job_of_slurm() -> None:
    result = outside("--config", "x")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no job of Slurm; submit it: sbatch --nodes 2 launch/slurm.sbatch")
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster


class Job:
    """launch/slurm.sbatch on both nodes, in `folder`; without GPUs, for this cluster has none."""

    def __init__(self, cluster: Cluster, folder: Path, *arguments: object, root: Path = runs.ROOT) -> None:
        self.cluster = cluster
        self.folder = folder
        environment = f"--export=ALL,PYTHON={sys.executable},DYNSPARSE_ROOT={root}"
        options = ("--parsable", "--nodes=2", "--gpus-per-node=0", f"--chdir={folder}", environment)
        self.number = cluster.run("sbatch", *options, SCRIPT, *arguments).strip()

    def said(self) -> str:
        output = self.folder / f"slurm-{self.number}.out"
        return output.read_text() if output.exists() else ""

    def state(self) -> str:
        return self.cluster.field(self.number, "JobState")

    def until(self, what: Callable[[], bool], name: str) -> None:
        """Wait until it holds, while the job continues."""
        self.cluster.until(lambda: what() or self.state() in ENDS, name)
        assert what(), f"{self.state()} before: {name}\n{self.said()}\n{self.cluster.logs()}"

    def ended(self) -> str:
        """The state it ends with."""
        self.cluster.until(lambda: self.state() in ENDS, "the job's end")
        return self.state()

    def requeued(self, times: int) -> None:
        """Slurm lets a job wait for two minutes then, so that its nodes have surely ended what was; they are asked.

        They refuse a job that begins in the second in which it ended: "credential revoked".
        """
        self.until(lambda: self.restarts() == times and self.state() == "PENDING", f"queued again {times} times")
        self.cluster.until(lambda: self.cluster.idle() == 2, "the nodes are idle")
        self.cluster.run("scontrol", "update", f"JobId={self.number}", "StartTime=now+3")

    def restarts(self) -> int:
        return int(self.cluster.field(self.number, "Restarts"))


def epochs(folder: Path) -> int:
    """Number of epochs that a run has finished."""
    file = folder / "metrics.jsonl"
    return file.read_text().count('"kind": "epoch"') if file.exists() else 0


def assert_same_run(actual: Path, expected: Path) -> None:
    ours, theirs = runs.summary(actual), runs.summary(expected)
    for key in ("status", "world_size", "steps", "mask_digest", "weight_digest", "rank_digests", "test_top1"):
        assert ours[key] == theirs[key], key
    assert runs.metrics(actual) == runs.metrics(expected)


def small_run(folder: Path) -> Path:
    settings = runs.config(runs=str(folder), train={"epochs": 60}, log={"progress": "lines"})
    return runs.write_config(folder, settings)


def run_undisturbed(config: Path, folder: Path) -> Path:
    done = runs.dist_train("--config", config, f"runs={folder}", "name=whole", workers=2)
    assert done.returncode == 0, done.stderr
    return folder / "whole"


@pytest.mark.slow
def test_a_job_that_saves_on_request_is_queued_again_and_goes_on(tmp_path: Path, cluster: Cluster) -> None:
    """The option --overwrite has its effect once, and no line of the run's metrics is lost."""
    config, folder = small_run(tmp_path), tmp_path / "a"
    job = Job(cluster, tmp_path, "--config", config, "name=a", "--overwrite")
    job.until(lambda: epochs(folder) > 2, "the third epoch")
    cluster.run("scancel", "--signal=USR1", job.number)
    job.requeued(1)
    assert runs.summary(folder)["status"] == "stopped"
    assert job.ended() == "COMPLETED", job.said()
    assert job.restarts() == 1
    assert f"launch 'test-{job.number}' has begun this run: resuming it" in job.said()
    assert_same_run(folder, run_undisturbed(config, tmp_path))
    logs = sorted(path.relative_to(tmp_path).parts for path in tmp_path.glob("slurm-*/**/stderr.log"))
    assert [(parts[1], *parts[3:5]) for parts in logs] == [
        (host, "attempt_0", "0") for host in ("host1", "host1", "host2", "host2")
    ]


def test_what_is_wrong_is_said_in_one_line_and_ends_the_job(tmp_path: Path, cluster: Cluster) -> None:
    config = small_run(tmp_path)
    missing = "data={name: imagenet, path: /nowhere, number_of_classes: 10, image_size: 32}"
    jobs = {
        "nothing to run; submit it with arguments": Job(cluster, tmp_path),
        f"--config {tmp_path}/no.yaml: cannot be read": Job(cluster, tmp_path, "--config", tmp_path / "no.yaml"),
        "data.path: /nowhere": Job(cluster, tmp_path, "--config", config, missing, "model={name: imagenet_resnet50}"),
        f"there is no {tmp_path}/launch/node.sh; submit from": Job(
            cluster, tmp_path, "--config", config, root=tmp_path
        ),
        "--head nowhere.invalid cannot be resolved on host1": Job(
            cluster, tmp_path, "--head", "nowhere.invalid", "--", "--config", config
        ),
    }
    for message, job in jobs.items():
        assert job.ended() == "FAILED", job.said()
        # A name server that cannot be reached may answer the next time.
        code = 1 if "Temporary failure in name resolution" in job.said() else 2
        assert cluster.field(job.number, "ExitCode") == f"{code}:0"
        assert job.restarts() == 0
        lines = [line for line in job.said().splitlines() if not line.startswith("srun: ")]
        assert len(lines) == 1, job.said()
        assert lines[0].startswith(f"error: {message}")


@pytest.mark.slow
def test_digits_are_preempted_and_end_as_if_not(tmp_path: Path, cluster: Cluster) -> None:
    """It is preempted by a signal, by an administrator, and by a job that goes first. Cancelled, it stays so."""
    config, folder = runs.ROOT / "configs/digits_dsr.yaml", tmp_path / "preempted"
    arguments = ("--config", config, f"runs={tmp_path}", "name=preempted", "checkpoint.every_steps=10")
    job = Job(cluster, tmp_path, *arguments)
    job.until(lambda: epochs(folder) > 9, "the tenth epoch")
    cluster.run("scancel", "--signal=USR1", job.number)
    job.requeued(1)
    job.until(lambda: epochs(folder) > 29, "the thirtieth epoch")
    cluster.run("scontrol", "requeue", job.number)
    job.requeued(2)
    job.until(lambda: epochs(folder) > 49, "the fiftieth epoch")
    urgent = ("--parsable", "--partition=high", "--nodes=2", f"--chdir={tmp_path}", "--wrap=srun hostname")
    urgent_job = cluster.run("sbatch", *urgent).strip()
    job.requeued(3)
    assert cluster.field(urgent_job, "JobState") == "COMPLETED"
    assert job.ended() == "COMPLETED", job.said()
    assert job.restarts() == 3
    print(job.said())
    whole = run_undisturbed(config, tmp_path)
    assert_same_run(folder, whole)

    cancelled = Job(cluster, tmp_path, *arguments, "--overwrite")
    cancelled.until(lambda: epochs(folder) in range(1, 90), "the first epoch")
    cluster.run("scancel", cancelled.number)
    assert cancelled.ended() == "CANCELLED"
    cluster.until(lambda: cluster.idle() == 2, "the nodes are idle")
    assert (cancelled.state(), cancelled.restarts()) == ("CANCELLED", 0)
    assert runs.summary(folder)["status"] == "stopped"
