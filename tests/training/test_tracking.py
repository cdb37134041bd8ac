"""W&B and MLflow for real, offline and in a store of files. Skipped where they are not installed: see the extras."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dynsparse.errors import StopRequested, UserError
from dynsparse.training.callbacks import require_trackers, standard_observers
from dynsparse.training.callbacks.tracking import installed, observer
from dynsparse.training.resume import checkpoints_of
from tests.training import runs, wandb_files
from tests.training.test_folder import open_folder

TIMED = {"throughput/images_per_second", "reallocation/seconds"}
Curves = dict[str, set[tuple[int, float]]]
"""Steps and values by tag, as float32. A step that was trained twice is there once: its values are the same."""


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(name) is None, reason=f"needs the extra {name}")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after step 11, lost step 11, and was resumed from step 10."""
    place = tmp_path_factory.mktemp("runs")
    asked = [name for name in ("wandb", "mlflow") if find_spec(name) is not None]
    if not asked:
        pytest.skip("needs the extra wandb or mlflow")
    logs = {**dict.fromkeys(asked, True), "every_steps": 1}
    settings = runs.config(runs=str(place), name="a", log=logs, checkpoint={"every_steps": 2})
    with pytest.MonkeyPatch.context() as patch:
        environment(patch, place)
        patch.setattr(observer, "LIMIT_SECONDS", 200.0)
        patch.setattr(installed, "LIMIT_SECONDS", 200.0)
        require_trackers(settings)
        open_folder(settings, resume=None, overwrite=False)
        first = runs.trainer(settings, observers=standard_observers(settings), checkpoints=checkpoints_of(settings))
        first.stop_requested = lambda: first.progress.step == 11
        with pytest.raises(StopRequested):
            first.fit()
        for name in ("step-000000011", "latest"):
            (settings.folder / "checkpoints" / f"{name}.pt").unlink()
        saved = open_folder(settings, resume="auto", overwrite=False)
        assert saved is not None
        second = runs.trainer(settings, observers=standard_observers(settings), checkpoints=checkpoints_of(settings))
        second.load(saved)
        second.fit()
    return settings.folder


@pytest.fixture(autouse=True)
def _may_read_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def environment(patch: pytest.MonkeyPatch, place: Path) -> None:
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("MLFLOW_TRACKING_URI", (place / "mlruns").as_uri())
    patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    patch.setenv("DO_NOT_TRACK", "true")


def tensorboard(folder: Path) -> Curves:
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    return curves((tag, event.step, event.value) for tag in board.Tags()["scalars"] for event in board.Scalars(tag))


def curves(points: Any) -> Curves:
    """Points by tag, as float32, which is what TensorBoard keeps."""
    found: Curves = {}
    for tag, step, value in points:
        if tag not in TIMED:
            found.setdefault(tag, set()).add((step, float(np.float32(value))))
    return found


def mlflow_run(folder: Path) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient((folder.parent / "mlruns").as_uri())
    return client, client.get_run(json.loads((folder / "mlflow.json").read_text())["id"])


def wandb_logs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))


def test_the_run_is_the_same_to_the_bit(tracked: Path) -> None:
    assert runs.summary(tracked)["weight_digest"] == runs.trainer(runs.config()).fit().weight_digest


@needs("wandb")
def test_wandb_has_tensorboards_tags_and_steps(tracked: Path) -> None:
    rows = [row for path in wandb_logs(tracked) for row in wandb_files.rows(path)]
    flat = ((tag, row["step"], value) for row in rows for tag, value in row.items() if is_scalar(tag, value))
    assert curves(flat) == tensorboard(tracked)
    assert all("step" in row for row in rows)


def is_scalar(tag: str, value: object) -> bool:
    ours = not tag.startswith(("_", "data/first_batch", "active_weights/")) and tag != "step"
    return ours and isinstance(value, (int, float))


@needs("wandb")
def test_a_resume_continues_the_run_at_wandb(tracked: Path) -> None:
    logs = wandb_logs(tracked)
    assert len(logs) == 2
    begun = [record.run for path in logs for record in wandb_files.records(path) if record.HasField("run")]
    assert len({run.run_id for run in begun}) == 1
    assert {(run.display_name, run.project) for run in begun} == {("a", "dynsparse")}


@needs("wandb")
def test_wandb_has_config_summary_picture_and_histograms(tracked: Path) -> None:
    first, second = wandb_logs(tracked)
    config = wandb_files.config(first)
    assert (config["method"]["name"], config["train"]["epochs"], config["seed"]) == ("dsr", 2, 3)
    assert config["versions"] == runs.summary(tracked)["versions"]
    stopped, done = wandb_files.summary(first), wandb_files.summary(second)
    assert (stopped["status"], stopped["steps"], done["status"], done["steps"]) == ("stopped", 11, "done", 16)
    assert done["weight_digest"] == runs.summary(tracked)["weight_digest"]
    assert list(first.parent.glob("files/media/images/data/first_batch*.png"))
    kinds = {row.get("active_weights/fc1.weight/_type") for row in wandb_files.rows(second)}
    assert "histogram" in kinds
    ends = [record.WhichOneof("record_type") for record in wandb_files.records(first)]
    assert "preempting" in ends


@needs("mlflow")
def test_mlflow_has_tensorboards_tags_and_steps(tracked: Path) -> None:
    client, run = mlflow_run(tracked)
    history = {tag: client.get_metric_history(run.info.run_id, tag) for tag in run.data.metrics}
    assert curves((tag, one.step, one.value) for tag, ones in history.items() for one in ones) == tensorboard(tracked)


@needs("mlflow")
def test_mlflow_has_one_run_with_config_summary_and_picture(tracked: Path) -> None:
    client, run = mlflow_run(tracked)
    experiment = client.get_experiment_by_name("dynsparse")
    assert [found.info.run_id for found in client.search_runs([experiment.experiment_id])] == [run.info.run_id]
    assert (run.info.run_name, run.info.status, run.data.tags["status"]) == ("a", "FINISHED", "done")
    assert run.data.params["method.name"] == "dsr"
    assert run.data.params["model.hidden"] == "[24, 12]"
    assert run.data.tags["version.torch"] == runs.summary(tracked)["versions"]["torch"]
    place = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {path.name for path in place.rglob("*") if path.is_file()} == {
        "config.yaml",
        "first_batch.png",
        "summary.json",
    }
    assert (place / "config.yaml").read_text() in (tracked / "config.yaml").read_text()
    assert (place / "summary.json").read_text().strip() == (tracked / "summary.json").read_text().strip()


@needs("mlflow")
def test_a_run_that_mlflow_does_not_know_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynsparse.training.callbacks.tracking.mlflow_tracker import MlflowTracker

    environment(monkeypatch, tmp_path)
    report = runs.trainer(runs.config(name="b")).reporter.run_report(resumed=False)
    tracker = MlflowTracker(tmp_path / "b", "another")
    known = tracker.begin(report, "0" * 32)
    assert known != "0" * 32
    assert tracker.begin(report, known) == known


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_missing_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda package: None)
    require_trackers(runs.config())
    with pytest.raises(UserError) as caught:
        require_trackers(runs.config(log={name: True}))
    command = f"pip install --constraint constraints.txt '.[{name}]'"
    assert caught.value.lines == (f"log.{name}: {name} is not installed; {command}",)


@pytest.mark.skipif(find_spec("wandb") is not None, reason="for an environment without the extra wandb")
def test_a_start_without_the_library_is_refused_before_anything(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path / "runs"), name="a", log={"wandb": True})
    result = runs.dist_train("--config", runs.write_config(tmp_path, settings))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "error: log.wandb: wandb is not installed; pip install --constraint constraints.txt '.[wandb]'"
    ]
    assert not (tmp_path / "runs").exists()


@needs("wandb")
def test_wandb_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    result = subprocess.run([sys.executable, "-c", ASK], cwd=runs.ROOT, capture_output=True, text=True)
    assert "log.wandb: W&B has no key of yours; run wandb login, set WANDB_API_KEY" in result.stdout, result.stderr


@needs("mlflow")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MLFLOW_TRACKING_URI": "file:///nowhere"}, "without MLFLOW_ALLOW_FILE_STORE=true"),
        ({"MLFLOW_TRACKING_URI": "file:///nowhere", "MLFLOW_ALLOW_FILE_STORE": "true"}, None),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, None),
        ({}, None if find_spec("sqlalchemy") else "set MLFLOW_TRACKING_URI to a server"),
    ],
)
def test_mlflow_stores(settings: Mapping[str, str], said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynsparse.training.callbacks.tracking import mlflow_tracker

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    found = mlflow_tracker.problem()
    assert found is None if said is None else said in str(found)


ASK = """
from tests.training import runs
from dynsparse.errors import UserError
from dynsparse.training.callbacks import require_trackers
try:
    require_trackers(runs.config(log={"wandb": True}))
except UserError as error:
    print(error)
"""
