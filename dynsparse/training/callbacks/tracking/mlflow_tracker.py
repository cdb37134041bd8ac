"""MLflow as a tracker."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from torch import Tensor

from dynsparse.training.callbacks.base import RunReport, Summary
from dynsparse.training.callbacks.tracking.base import Histogram, Reading, Tracker
from dynsparse.training.run import names

EXPERIMENT = "dynsparse"
_MOST_METRICS, _MOST_PARAMS, _LONGEST_PARAM = 1000, 100, 500
"""MLflow's limits of a call, and characters of a value that every server takes."""
_NOT_IN_TAGS = re.compile(r"[^A-Za-z0-9_./: -]")
"""Characters that MLflow refuses in a metric's name."""
_STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowTracker(Tracker):
    """Logs to the server or the store that MLFLOW_TRACKING_URI names."""

    name = "MLflow"
    file = names.MLFLOW_ID

    def __init__(self, folder: Path, project: str | None) -> None:
        super().__init__(folder, project)
        # It warns of each retry of an outage, which `Delivery` tells of once.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

    def begin(self, run: RunReport, id: str | None) -> str:  # noqa: A002 - the contract's word
        self._client = mlflow.MlflowClient()
        self._id = (id and self._continued(id)) or self._created(run.name)
        known = self._client.get_run(self._id).data.params
        new = [Param(key, value) for key, value in params(run.config) if key not in known]
        for batch in _batches(new, _MOST_PARAMS):
            self._client.log_batch(self._id, params=batch)
        self._client.log_batch(self._id, tags=[RunTag(f"version.{key}", text) for key, text in run.versions.items()])
        self._client.log_text(self._id, run.config_yaml, names.CONFIG)
        return self._id

    def log(self, readings: Sequence[Reading]) -> None:
        metrics = [
            Metric(_NOT_IN_TAGS.sub("_", tag), float(value), int(1000 * one.seconds), one.step)
            for one in readings
            for tag, value in one.values.items()
        ]
        for batch in _batches(metrics, _MOST_METRICS):
            self._client.log_batch(self._id, metrics=batch)

    def show(self, tag: str, picture: Tensor) -> None:
        self._client.log_image(self._id, picture.permute(1, 2, 0).numpy(), artifact_file=f"{tag}.png")

    def spread(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """MLflow has no histograms."""

    def end(self, summary: Summary) -> None:
        self._client.log_text(self._id, json.dumps(asdict(summary), indent=2), names.SUMMARY)
        self._client.set_tag(self._id, "status", summary.status)
        self._client.set_terminated(self._id, _STATUS[summary.status])

    def where(self) -> str:
        return f"run {self._id} at {mlflow.get_tracking_uri()}"

    def left(self) -> str:
        return "and MLflow's curves have gaps"

    def may_pass(self, error: Exception) -> bool:
        if isinstance(error, MlflowException):
            status = int(error.get_http_status_code())
            return status >= 500 or status == 429
        return isinstance(error, OSError)

    def _continued(self, id: str) -> str | None:  # noqa: A002 - the contract's word
        """Return the id of a run that the store has, which runs again; None for another store's."""
        try:
            self._client.update_run(id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return None
        return id

    def _created(self, name: str) -> str:
        wanted = self.project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        experiment = self._client.get_experiment_by_name(wanted)
        place = experiment.experiment_id if experiment is not None else self._client.create_experiment(wanted)
        return str(self._client.create_run(place, run_name=name).info.run_id)


def params(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings of a config as section.key, each with its value as text."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from params(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", str(value)[:_LONGEST_PARAM]


def problem() -> str | None:
    """Return why nothing could be logged: MLflow, as it is installed, cannot reach such a store. None if it can."""
    uri = mlflow.get_tracking_uri()
    kind = urlsplit(uri).scheme
    if kind in ("", "file"):
        allowed = os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")
        return None if allowed else f"MLflow refuses stores of files ({uri}) without MLFLOW_ALLOW_FILE_STORE=true"
    if kind.startswith(("http", "databricks")) or find_spec("sqlalchemy") is not None:
        return None
    return (
        f"the store is {uri}, which needs the whole of MLflow: set MLFLOW_TRACKING_URI to a server, such as "
        f"http://HOST:5000, or pip install mlflow"
    )


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
