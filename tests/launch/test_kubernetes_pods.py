"""The pods of the manifests, run for real on two hosts: with their commands, variables, users and volumes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dynsparse.errors import EXIT_BAD_INPUT, EXIT_STOPPED
from tests.hosts import Host, Hosts, why_not
from tests.launch import manifests, pods
from tests.launch.jobs import LIMIT_SECONDS, Job, TrainJob
from tests.launch.pods import Pod

pytestmark = pytest.mark.timeout(900)
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
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of a job to which nothing comes but that its second pod is there before the head has an address."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with submit(Job, tmp_path_factory.mktemp("undisturbed"), *SHORT) as job:

        def meanwhile() -> None:
            job.until(lambda: 1 in job.running)
            job.publish(1)
            job.publish(0)

        assert job.run(meanwhile) == ["Complete", "Complete"], job.logs()
        assert job.codes == [[0], [0]]
        return job.summary()


@pytest.mark.slow  # test_node.py trains on two hosts with the same script.
def test_pods_train_to_the_end(undisturbed: dict[str, Any]) -> None:
    assert undisturbed["status"] == "done"
    assert undisturbed["world_size"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "index"), [(Job, 0), (TrainJob, 1)], ids=["Job-head", "TrainJob-other"])
def test_an_evicted_pod_is_replaced_and_the_run_goes_on(
    tmp_path: Path, undisturbed: dict[str, Any], kind: type[Job], index: int
) -> None:
    """The head's pod takes with it the store where all pods meet."""
    with submit(kind, tmp_path, *SHORT) as job:

        def meanwhile() -> None:
            job.publish(0)
            job.publish(1)
            job.until(lambda: [*job.run_folder.glob("checkpoints/step-*.pt")])
            pods.stop(job.running[index])

        assert job.run(meanwhile) == ["Complete", "Complete"], job.logs()
        assert job.codes[index] == [EXIT_STOPPED, 0]
        assert job.summary()["weight_digest"] == undisturbed["weight_digest"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        pytest.param(
            "train.epoch=3", "train.epoch: unknown key; did you mean 'epochs'?", id="key", marks=pytest.mark.slow
        ),
        pytest.param("data={name: imagenet, path: data/imagenet}", "data/imagenet", id="data", marks=pytest.mark.slow),
    ],
)
def test_bad_input_ends_the_job_in_a_line(tmp_path: Path, argument: str, message: str) -> None:
    with submit(Job, tmp_path, argument) as job:
        job.publish(0)
        assert job.run_index(0) == "FailJob"
        assert job.codes[0] == [EXIT_BAD_INPUT]
        (line,) = [line for line in job.log(0).read_text().splitlines() if not line.startswith("note: ")]
        assert line.startswith("error: ")
        assert message in line


def test_tensorboard_answers_in_its_pod_alone(tmp_path: Path) -> None:
    """It answers where kubectl port-forward comes out, and other pods are turned away."""
    document = manifests.one("Deployment")
    (container,) = manifests.pod_spec(document)["containers"]
    (tmp_path / "runs").mkdir()
    image, claims = pods.make_image(tmp_path / "image"), {"dynsparse-runs": tmp_path / "runs"}
    with Hosts(2) as hosts:
        pod = Pod(manifests.pod_spec(document), hosts[0], "tensorboard", image, claims, {})
        pod.boot(tmp_path / "names")
        process = pod.start(container, tmp_path / "log")
        deadline = time.monotonic() + LIMIT_SECONDS
        while pods.probe(process, container["readinessProbe"]["exec"]["command"]).returncode != 0:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        assert connect(hosts[0], "127.0.0.1") == "connected"
        assert connect(hosts[1], hosts[0].address) == "Connection refused"
        pods.stop(process)
        assert process.wait(LIMIT_SECONDS) == 0


def connect(host: Host, address: str) -> str:
    """Try a connection to TensorBoard's port there."""
    script = (
        f"import socket\ntry:\n socket.create_connection(('{address}', 6006), 10)\n print('connected')\n"
        "except OSError as error: print(error.strerror)"
    )
    out, _ = host.start(sys.executable, "-c", script).communicate(timeout=60)
    return str(out).strip()


def test_a_container_writes_to_volumes_alone(tmp_path: Path) -> None:
    """Containers are confined as the manifest says, which the other tests here need."""
    places = ("/", "/etc", "/usr", ".", "data", "runs", "/tmp", "/dev/shm")
    script = (
        f"for place in {' '.join(places)}; do if touch $place/new 2>/dev/null; then echo $place; fi; done; "
        "id -u; id -G; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status"
    )
    with submit(Job, tmp_path) as job:
        (node,) = job.pod_spec["containers"]
        process = job.pods[0].start({**node, "command": ["sh", "-c", script], "args": []}, job.log(0))
        assert process.wait(LIMIT_SECONDS) == 0
        assert job.log(0).read_text().split() == [
            *("runs", "/tmp", "/dev/shm", "1000", "1000"),
            *("CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1"),
        ]
