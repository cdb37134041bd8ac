"""The manifests of launch/kubernetes: what the published schemas say, and what they cannot know."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dynsparse.errors import EXIT_BAD_INPUT, EXIT_STOPPED
from tests.launch import manifests
from tests.launch.manifests import NEWEST, OLDEST, Document, RefusedError, check, containers, load, one, pod_spec
from tests.training import runs
from tests.training.runs import ROOT

DOCUMENTS = load(*manifests.files())
WITH_PODS = [one("Job"), one("TrainingRuntime"), one("Deployment")]
JOBS = WITH_PODS[:2]
_LABELS = ("labels", "annotations", "matchLabels", "requests", "limits")
"""Maps whose keys are the user's."""


def name_of(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_schemas_take_it(document: Document, version: str) -> None:
    check(document, version)


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each field that a schema knows."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from fields(item, (*path, index))
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            if key not in _LABELS and not (key == "selector" and "clusterIP" in value):
                yield from fields(item, (*path, key))


def changed(document: Document, path: tuple[Any, ...], key: str, value: Any = None) -> Document:
    """A copy whose field at `path` has another name, or another value too."""
    result = copy.deepcopy(document)
    around = result
    for step in path[:-1]:
        around = around[step]
    old = around.pop(path[-1])
    around[key] = old if value is None else value
    return result


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_schemas_refuse_every_misspelt_field_and_every_wrong_type(document: Document) -> None:
    taken = []
    for path in fields(document):
        if path in (("kind",), ("metadata", "name")):
            continue
        misspelt = changed(document, path, f"{path[-1]}x")
        of_wrong_type = changed(document, path, path[-1], [["wrong"]])
        for one_of_them in (misspelt, of_wrong_type):
            try:
                check(one_of_them)
            except RefusedError:
                continue
            taken.append(".".join(map(str, path)))
    assert taken == []


def test_one_image_that_exists_nowhere_else() -> None:
    assert {container["image"] for document in WITH_PODS for container in containers(document)} == {"dynsparse:latest"}


def test_folders_and_user_are_those_of_the_dockerfile() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    folder = re.findall(r"^WORKDIR (.*)$", dockerfile, re.MULTILINE)[-1]
    user = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)[-1]
    for document in WITH_PODS:
        security = pod_spec(document)["securityContext"]
        assert (str(security["runAsUser"]), str(security["runAsGroup"])) == user
        mounts = {
            mount["name"]: mount for container in containers(document) for mount in container.get("volumeMounts", [])
        }
        assert mounts["runs"]["mountPath"] == f"{folder}/runs"
        if document in JOBS:
            assert mounts["data"]["mountPath"] == f"{folder}/data"
            assert mounts["data"]["readOnly"]
            assert "readOnly" not in mounts["runs"]


@pytest.mark.parametrize("document", WITH_PODS, ids=name_of)
def test_pods_are_restricted(document: Document) -> None:
    """Pods meet the Pod Security Standard of this name, and their root file system is read-only."""
    spec = pod_spec(document)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert {kind for volume in spec["volumes"] for kind in volume} == {"name", "emptyDir", "persistentVolumeClaim"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & {*spec}
    for container in containers(document):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("document", WITH_PODS, ids=name_of)
def test_volumes_lead_to_claims(document: Document) -> None:
    volumes = {volume["name"]: volume for volume in pod_spec(document)["volumes"]}
    mounted = {mount["name"] for container in containers(document) for mount in container.get("volumeMounts", [])}
    assert mounted == {*volumes}
    claims = {one["metadata"]["name"]: one["spec"] for one in DOCUMENTS if one["kind"] == "PersistentVolumeClaim"}
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            # Of several machines at once.
            assert claims[volume["persistentVolumeClaim"]["claimName"]]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("document", JOBS, ids=name_of)
def test_exit_codes_decide(document: Document) -> None:
    job = manifests.job_spec(document)
    fail, go_on, disrupted = job["podFailurePolicy"]["rules"]
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [EXIT_BAD_INPUT])
    assert (go_on["action"], go_on["onExitCodes"]["values"]) == ("Ignore", [EXIT_STOPPED])
    assert (disrupted["action"], disrupted["onPodConditions"]) == (
        "Ignore",
        [{"type": "DisruptionTarget", "status": "True"}],
    )
    (container,) = pod_spec(document)["containers"]
    assert {rule["onExitCodes"]["containerName"] for rule in (fail, go_on)} == {container["name"]}
    # What the API server wants beside a policy and a limit for each index; no schema says so.
    assert pod_spec(document)["restartPolicy"] == "Never"
    assert job["podReplacementPolicy"] == "Failed"
    assert job["completionMode"] == "Indexed"
    assert job["maxFailedIndexes"] == 0


@pytest.mark.parametrize("document", JOBS, ids=name_of)
def test_there_is_time_to_save(document: Document) -> None:
    spec = pod_spec(document)
    variables = {entry["name"]: entry.get("value") for entry in spec["containers"][0]["env"]}
    assert int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < spec["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("document", JOBS, ids=name_of)
def test_shared_memory_is_within_the_limit(document: Document) -> None:
    spec = pod_spec(document)
    (volume,) = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shared-memory"]
    (mount,) = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "shared-memory"]
    assert (volume["medium"], mount["mountPath"]) == ("Memory", "/dev/shm")
    limits = spec["containers"][0]["resources"]["limits"]
    assert int(volume["sizeLimit"].removesuffix("Gi")) < int(limits["memory"].removesuffix("Gi"))


def test_job_service_and_policy_name_each_other() -> None:
    documents = load(*(manifests.FOLDER / "job").glob("*.yaml"))
    job, service, policy = (
        one(kind, [d for d in documents if d["kind"] != "Kustomization"])
        for kind in ("Job", "Service", "NetworkPolicy")
    )
    name = job["metadata"]["name"]
    of_the_job = {"batch.kubernetes.io/job-name": name}
    assert service["metadata"]["name"] == pod_spec(job)["subdomain"] == name
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == of_the_job
    only_its_pods(policy, of_the_job)
    variables = {entry["name"]: entry.get("value") for entry in pod_spec(job)["containers"][0]["env"]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(variables["NODES"])


def test_train_job_runtime_and_policy_name_each_other() -> None:
    train_job, runtime = one("TrainJob"), one("TrainingRuntime")
    assert train_job["spec"]["runtimeRef"] == {"kind": "TrainingRuntime", "name": runtime["metadata"]["name"]}
    policy = one("NetworkPolicy", load(manifests.FOLDER / "trainer/network.yaml"))
    only_its_pods(policy, {"jobset.sigs.k8s.io/jobset-name": train_job["metadata"]["name"]})
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    # By these the Trainer finds where the variables go.
    assert replicated["name"] == "node"
    assert replicated["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    (container,) = pod_spec(runtime)["containers"]
    assert container["name"] == "node"
    used = {*re.findall(r"\$\((PET_\w+)\)", " ".join(container["command"]))}
    assert used == {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_MASTER_ADDR", "PET_MASTER_PORT"}


def only_its_pods(policy: Document, labels: dict[str, str]) -> None:
    """Assert that the policy lets in only pods with these labels, on all ports."""
    selector = {"podSelector": {"matchLabels": labels}}
    assert policy["spec"] == {**selector, "policyTypes": ["Ingress"], "ingress": [{"from": [selector]}]}


def test_both_run_the_same_pods() -> None:
    """The pods are the same but for the Trainer's additions."""
    job, runtime = (copy.deepcopy(pod_spec(document)) for document in JOBS)
    del job["subdomain"]
    for spec in (job, runtime):
        for container in (*spec["initContainers"], *spec["containers"]):
            assert container.pop("command")[0] in ("launch/node.sh", "python3")
            container.pop("args", None)
            container["env"] = [
                entry for entry in container["env"] if entry["name"] not in ("JOB_NAME", "JOBSET", "NODES")
            ]
    assert job == runtime
    policies = [manifests.job_spec(document)["podFailurePolicy"] for document in JOBS]
    assert policies[0] == policies[1]


@pytest.mark.parametrize("document", WITH_PODS, ids=name_of)
def test_commands_are_in_the_image(document: Document) -> None:
    allowed = [line[2:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!/")]
    for container in containers(document):
        probe = container.get("readinessProbe", {}).get("exec", {}).get("command", [])
        for word in (*container["command"], *probe):
            if word.startswith("launch/"):
                assert (ROOT / word).is_file()
                assert word.split("/")[0] in allowed


@pytest.mark.parametrize(
    "arguments", [pod_spec(one("Job"))["containers"][0]["args"], one("TrainJob")["spec"]["trainer"]["args"]]
)
def test_arguments_are_those_of_dist_train(arguments: list[str]) -> None:
    done = runs.dist_train(*arguments, "--dry-run")
    assert done.returncode == 0, done.stderr


def test_the_head_has_the_port_of_the_launcher() -> None:
    """launch/node.sh's own, which the Trainer gives too."""
    done = subprocess.run([ROOT / "launch/node.sh", "--help"], capture_output=True, text=True, check=True)
    assert "(port 29500)" in done.stdout
    for document in JOBS:
        (before,) = pod_spec(document)["initContainers"]
        assert before["command"][:3] == ["python3", "launch/meeting.py", "wait"]
        assert before["command"][3].endswith(":29500")
        assert pod_spec(document)["containers"][0]["ports"] == [{"name": "rendezvous", "containerPort": 29500}]


def test_variables_are_put_in_as_kubernetes_does() -> None:
    given = {"A": "1", "B_2": "two"}
    assert manifests.expand("$(A)-0.$(B_2):$A $(C) $$(A)", given) == "1-0.two:$A $(C) $(A)"


needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which builds them, is not installed"
)


def build(folder: Path) -> list[Document]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [*yaml.safe_load_all(done.stdout)]


@needs_kubectl
@pytest.mark.parametrize("folder", ["job", "trainer", "tensorboard", "storage"])
def test_kustomize_changes_nothing_by_itself(folder: str) -> None:
    """The manifests contain just what the settings say."""
    given = load(*(path for path in manifests.files() if path.parent.name == folder))
    built = build(manifests.FOLDER / folder)
    assert sorted(built, key=name_of) == sorted(given, key=name_of)


@needs_kubectl
def test_the_readme_shows_a_patch_that_works(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (manifests.FOLDER / "README.md").read_text(), re.DOTALL)
    shutil.copytree(manifests.FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "my-run").mkdir()
    (tmp_path / "my-run/kustomization.yaml").write_text(example)
    job = one("Job", build(tmp_path / "my-run"))
    check(job)
    (container,) = pod_spec(job)["containers"]
    assert container["args"] == [*pod_spec(one("Job"))["containers"][0]["args"], "train.precision=bf16"]
    assert container["resources"]["requests"]["cpu"] == "32"


@needs_kubectl
def test_kustomize_takes_all_from_one_place(tmp_path: Path) -> None:
    shutil.copytree(manifests.FOLDER, tmp_path, dirs_exist_ok=True)
    settings = tmp_path / "settings/settings.yaml"
    raw = yaml.safe_load(settings.read_text())
    raw["data"] = {"job": "third", "nodes": "4", "gpus": "8", "config": "configs/imagenet_dsr.yaml"}
    settings.write_text(yaml.safe_dump(raw))
    shared = tmp_path / "settings/kustomization.yaml"
    shared.write_text(
        shared.read_text().replace('newTag: "latest"', 'newTag: "1"').replace("newName: dynsparse", "newName: a/b")
    )
    built = [document for folder in ("job", "trainer", "tensorboard") for document in build(tmp_path / folder)]
    for document in built:
        check(document)
    job, train_job, runtime = one("Job", built), one("TrainJob", built), one("TrainingRuntime", built)
    assert {c["image"] for d in (job, runtime, one("Deployment", built)) for c in containers(d)} == {"a/b:1"}
    assert (
        job["metadata"]["name"] == train_job["metadata"]["name"] == one("Service", built)["metadata"]["name"] == "third"
    )
    assert pod_spec(job)["subdomain"] == "third"
    assert one("Service", built)["spec"]["selector"] == {"batch.kubernetes.io/job-name": "third"}
    first, second = (document for document in built if document["kind"] == "NetworkPolicy")
    only_its_pods(first, {"batch.kubernetes.io/job-name": "third"})
    assert (first["metadata"]["name"], second["metadata"]["name"]) == ("third", "third-trainjob")
    only_its_pods(second, {"jobset.sigs.k8s.io/jobset-name": "third"})
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == train_job["spec"]["trainer"]["numNodes"] == 4
    (container,) = pod_spec(job)["containers"]
    assert {"name": "NODES", "value": "4"} in container["env"]
    for given in (container["args"], train_job["spec"]["trainer"]["args"]):
        assert given == ["--config", "configs/imagenet_dsr.yaml", "--resume", "auto"]
    for resources in (container["resources"], pod_spec(runtime)["containers"][0]["resources"]):
        assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "8"
