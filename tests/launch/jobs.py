"""Jobs of two pods on this machine: what a Job's controller, the kubelets and DNS do, by the manifests' words."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.hosts import Hosts
from tests.launch import manifests, pods
from tests.launch.pods import Pod
from tests.training import runs

LIMIT_SECONDS = 250


class Job:
    """An Indexed Job. `codes` of each index: those of the pods that came one after the other."""

    document = manifests.one("Job")
    name = subdomain = document["metadata"]["name"]
    labels = {"batch.kubernetes.io/job-name": name, "batch.kubernetes.io/controller-uid": "5f0c8f9e-0d6b-4c1f-a1b2"}

    def __init__(self, hosts: Hosts, folder: Path, *more: str) -> None:
        """`more`: after the arguments that the manifest gives."""
        self.folder = folder
        self.more = more
        self.spec, self.pod_spec = manifests.job_spec(self.document), manifests.pod_spec(self.document)
        self.claims = {name: folder / name for name in ("dynsparse-runs", "dynsparse-data")}
        for claim in self.claims.values():
            claim.mkdir()
            pods.give_to_group(claim, self.pod_spec["securityContext"]["fsGroup"])
        image = pods.make_image(folder / "image")
        self.pods = [
            Pod(self.pod_spec, hosts[index], f"{self.name}-{index}", image, self.claims, self.labels)
            for index in range(2)
        ]
        for pod in self.pods:
            pod.boot(folder / f"{pod.name}.names")
        self.running: dict[int, subprocess.Popen[str]] = {}
        self.codes: list[list[int]] = [[], []]

    def containers(self, index: int) -> list[dict[str, Any]]:
        """Containers of a pod, in the order in which they run, with the controllers' additions."""
        added = [{"name": "JOB_COMPLETION_INDEX", "value": str(index)}]
        all_of_them = [*self.pod_spec["initContainers"], *self.pod_spec["containers"]]
        return [{**container, "env": [*container["env"], *added]} for container in all_of_them]

    def publish(self, index: int) -> None:
        """Let the pod's name lead to its address from now on."""
        named = self.pods[index]
        for pod in self.pods:
            pod.look_up(f"{named.name}.{self.subdomain}", named.host.address)

    def run(self, meanwhile: Callable[[], None]) -> list[str]:
        """Run both indexes to their ends: for each the action of the policy that its last pod's code comes to."""
        with ThreadPoolExecutor(2) as threads:
            ends = [threads.submit(self.run_index, index) for index in range(2)]
            try:
                meanwhile()
                return [end.result(LIMIT_SECONDS) for end in ends]
            finally:
                for pod in self.pods:
                    pod.host.kill()  # Else, where something failed, the threads wait for their pods.

    def run_index(self, index: int) -> str:
        """Pod after pod, until the policy wants no other."""
        while True:
            action = self.action(self._run_pod(index))
            faults = [code for code in self.codes[index] if self.action(code) == "Count"]
            if action in ("Complete", "FailJob") or len(faults) > self.spec["backoffLimitPerIndex"]:
                return action

    def _run_pod(self, index: int) -> int:
        code = 0
        for container in self.containers(index):
            more = self.more if container["name"] == "node" else ()
            self.running[index] = self.pods[index].start(container, self.log(index), *more)
            if code := self.running[index].wait(LIMIT_SECONDS):
                break
        self.codes[index].append(code)
        return code

    def action(self, code: int) -> str:
        """The first rule that fits decides. Of conditions nothing is known here."""
        for rule in self.spec["podFailurePolicy"]["rules"]:
            if code in rule.get("onExitCodes", {}).get("values", []):
                return str(rule["action"])
        return "Count" if code else "Complete"

    def log(self, index: int) -> Path:
        return self.folder / f"{index}.log"

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))

    def until(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not what():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.05)

    @property
    def run_folder(self) -> Path:
        return self.claims["dynsparse-runs"] / "digits_dsr"

    def summary(self) -> dict[str, Any]:
        return runs.summary(self.run_folder)


class TrainJob(Job):
    """Job that Kubeflow Trainer and JobSet make of a TrainJob and its runtime, with the variables for torch."""

    document = manifests.one("TrainingRuntime")
    trainer = manifests.one("TrainJob")["spec"]["trainer"]
    subdomain = manifests.one("TrainJob")["metadata"]["name"]
    name = f"{subdomain}-node-0"
    labels = {
        **Job.labels,
        "batch.kubernetes.io/job-name": name,
        "jobset.sigs.k8s.io/jobset-name": subdomain,
    }

    def containers(self, index: int) -> list[dict[str, Any]]:
        *before, node = super().containers(index)
        variables = {
            "PET_NNODES": str(self.trainer["numNodes"]),
            "PET_NPROC_PER_NODE": "auto",
            "PET_NODE_RANK": str(index),
            "PET_MASTER_ADDR": f"{self.name}-0.{self.subdomain}",
            "PET_MASTER_PORT": "29500",
        }
        env = [*node["env"], *({"name": name, "value": value} for name, value in variables.items())]
        return [*before, {**node, "args": self.trainer["args"], "env": env}]
