"""The pods of the manifests, run for real on two hosts: with their commands, variables, users and volumes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dynsparse.errors import EXIT_BAD_INPUT, EXIT_STOPPED
from tests.hosts import Hosts, why_not
from tests.launch import pods
from tests.launch.jobs import Job, TrainJob

SHORT = ("train.epochs=20", "checkpoint.every_steps=20")


@pytest.fixture(autouse=True)
def _hosts_can_be_had() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@contextmanager
def submit(kind: type[Job], folder: Path, *more: str) -> Iterator[Job]:
    folder.mkdir(exist_ok=True)
    with Hosts(2) as hosts:
        yield kind(hosts, folder, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[type[Job], dict[str, Any]]:
    """Summaries of undisturbed jobs: pods that start late, and find each other."""
    if why_not() is not None:
        return {}
    return {kind: run_late(kind, tmp_path_factory.mktemp(kind.__name__)) for kind in (Job, TrainJob)}


def run_late(kind: type[Job], folder: Path) -> dict[str, Any]:
    """Run a job whose second pod is there before the head has an address."""
    with submit(kind, folder, *SHORT) as job:

        def meanwhile() -> None:
            job.until(lambda: 1 in job.running)
            job.publish(1)
            job.publish(0)

        assert job.run(meanwhile) == ["Complete", "Complete"], [job.log(index).read_text() for index in range(2)]
        assert job.codes == [[0], [0]]
        return job.summary()


def test_pods_of_both_manifests_train_to_the_end(finished: dict[type[Job], dict[str, Any]]) -> None:
    job, train_job = finished[Job], finished[TrainJob]
    assert job["world_size"] == train_job["world_size"] == 2
    assert job["status"] == "done"
    assert job["weight_digest"] == train_job["weight_digest"]


@pytest.mark.parametrize("index", [0, 1])
def test_an_evicted_pod_is_replaced_and_the_run_goes_on(
    tmp_path: Path, finished: dict[type[Job], dict[str, Any]], index: int
) -> None:
    """That of the head, with which the meeting place goes, and that of another."""
    with submit(Job, tmp_path, *SHORT) as job:

        def meanwhile() -> None:
            job.publish(0)
            job.publish(1)
            job.until(lambda: [*job.run_folder.glob("checkpoints/step-*.pt")])
            pods.stop(job.running[index])

        assert job.run(meanwhile) == ["Complete", "Complete"], [job.log(index).read_text() for index in range(2)]
        assert job.codes[index] == [EXIT_STOPPED, 0]
        assert job.summary()["weight_digest"] == finished[Job]["weight_digest"]
        print(job.codes)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("train.epoch=3", "train.epoch: unknown key; did you mean 'epochs'?"),
        ("data={name: imagenet, path: data/imagenet}", "data/imagenet"),
    ],
    ids=["key", "data"],
)
def test_bad_input_ends_the_job_in_a_line(tmp_path: Path, argument: str, message: str) -> None:
    with submit(Job, tmp_path, argument) as job:
        job.publish(0)
        assert job.run_index(0) == "FailJob"
        assert job.codes[0] == [EXIT_BAD_INPUT]
        (line,) = [line for line in job.log(0).read_text().splitlines() if not line.startswith("note: ")]
        assert line.startswith("error: ")
        assert message in line
