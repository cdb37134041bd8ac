"""The manifests of launch/kubernetes, and whether the published schemas take them.

Fields that these do not know are refused, as the API server does with kubectl.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from kubeflow_trainer_api import models
from kubernetes_validate import utils

from tests.training.runs import ROOT

FOLDER = ROOT / "launch/kubernetes"
OLDEST, NEWEST = "1.29", kubernetes_validate.latest_version()
"""Versions of Kubernetes. In 1.29 backoffLimitPerIndex is on by default."""

utils.schema_contents = functools.cache(utils.schema_contents)  # Else each check parses megabytes of JSON anew.

Document = dict[str, Any]
_OF_THE_TRAINER = {
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
}
# The models say ValueError only where they come as far as looking at a value.
_REFUSALS = (
    kubernetes_validate.ValidationError,
    kubernetes_validate.SchemaNotFoundError,
    *(AttributeError, KeyError, TypeError, ValueError),
)


class RefusedError(Exception):
    """A schema refuses a document."""


def files() -> list[Path]:
    """All manifests, without what tells kustomize what to do with them."""
    return sorted(path for path in FOLDER.glob("*/*.yaml") if path.name not in ("kustomization.yaml", "settings.yaml"))


def load(*paths: Path) -> list[Document]:
    return [document for path in paths for document in yaml.safe_load_all(path.read_text())]


def one(kind: str, documents: list[Document] | None = None) -> Document:
    """The only one of its kind, of all manifests if not said otherwise."""
    (found,) = [document for document in documents or load(*files()) if document["kind"] == kind]
    return found


def check(document: Document, version: str = NEWEST) -> None:
    """Raise RefusedError if the schema of its kind does not take it."""
    try:
        if document["kind"] in _OF_THE_TRAINER:
            _check_of_the_trainer(document)
        else:
            kubernetes_validate.validate(document, version, strict=True)
    except _REFUSALS as error:
        raise RefusedError(f"{document['kind']}: {error}") from error


def _check_of_the_trainer(document: Document) -> None:
    """The models drop what they do not know, and add defaults: what comes out must hold all that went in."""
    if document["apiVersion"] != "trainer.kubeflow.org/v1alpha1":
        raise ValueError(f"apiVersion is {document['apiVersion']}")
    model = _OF_THE_TRAINER[document["kind"]].from_dict(document)
    assert model is not None
    if lost := [*_missing(document, model.to_dict())]:
        raise ValueError(f"unknown: {', '.join(lost)}")


def _missing(given: Any, known: Any, path: str = "") -> Iterator[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        for name, value in given.items():
            yield from _missing(value, known.get(name), f"{path}.{name}")
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        for index, value in enumerate(given):
            yield from _missing(value, known[index], f"{path}[{index}]")
    elif given != known:
        yield path


def job_spec(document: Document) -> Any:
    """Spec around the pod's template, in a Job, a Deployment or a TrainingRuntime."""
    if document["kind"] == "TrainingRuntime":
        (job,) = document["spec"]["template"]["spec"]["replicatedJobs"]
        return job["template"]["spec"]
    return document["spec"]


def pod_spec(document: Document) -> Any:
    return job_spec(document)["template"]["spec"]


def containers(document: Document) -> list[Any]:
    """All containers of a pod, init containers first."""
    spec = pod_spec(document)
    return [*spec.get("initContainers", []), *spec["containers"]]


def expand(text: str, environment: Mapping[str, str]) -> str:
    """$(NAME) as Kubernetes does it: one that it does not know stays, $$ is one $ that begins no name."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", value, text)
