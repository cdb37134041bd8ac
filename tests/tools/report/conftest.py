"""Real runs, made once: what the report is made from must be what training writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dynsparse.cli.main import main
from tests.training import runs

FAULTY_RUN = Path(runs.__file__).with_name("faulty_run.py")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three runs.

    dead: killed by SIGKILL at step 13 of 24, with a checkpoint of a step before.
    resumed: the same, gone on with to its end.
    static: without reallocations, as training in this process writes it.
    """
    folder = tmp_path_factory.mktemp("runs")
    settings = runs.config(name="dead", runs=str(folder), train={"epochs": 3}, checkpoint={"every_steps": 3, "keep": 3})
    config = runs.write_config(tmp_path_factory.mktemp("config"), settings)
    arguments = ["--config", config, "--resume", "auto"]
    assert runs.dist_train(*arguments, script=FAULTY_RUN, FAULTS="kill 0 step 13").returncode != 0
    shutil.copytree(folder / "dead", folder / "resumed")
    finished = runs.dist_train(*arguments, "name=resumed")
    assert finished.returncode == 0, finished.stderr
    static_run(folder)
    return folder


def static_run(folder: Path, name: str = "static") -> Path:
    from dynsparse.training.callbacks.history_file import HistoryFile
    from dynsparse.training.callbacks.metrics_file import MetricsFile
    from dynsparse.training.callbacks.summary_file import SummaryFile

    settings = runs.config(name=name, runs=str(folder), method={"name": "static"}, log={"tensorboard": False})
    run = folder / name
    run.mkdir()
    runs.write_config(run, settings)
    observers = [
        MetricsFile(run / "metrics.jsonl"),
        HistoryFile(run / "history.jsonl"),
        SummaryFile(run / "summary.json"),
    ]
    runs.trainer(settings, observers=observers).fit()
    return run


@pytest.fixture(scope="session")
def written(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the three, in a folder of its own."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    assert main(["report", *(str(made / name) for name in ("resumed", "static", "dead")), "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The resumed run, to be changed."""
    return Path(shutil.copytree(made / "resumed", tmp_path / "run"))
