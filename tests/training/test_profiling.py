from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import record_function

from dynsparse.errors import StopRequested
from dynsparse.reallocation import ReallocationReport
from dynsparse.training.callbacks import Callback
from dynsparse.training.profiling import WAIT, WARMUP, profiled
from tests.training import runs


def events_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return found


def steps_of(path: Path) -> list[int]:
    """The steps of the run that a trace has, in order."""
    names = {event["name"] for event in events_of(path) if str(event.get("name")).startswith("ProfilerStep#")}
    return sorted(int(name.partition("#")[2]) + 1 for name in names)


class Marks(Callback):
    """Marks each reallocation in the trace, with its step."""

    def on_reallocation(self, report: ReallocationReport) -> None:
        with record_function(f"reallocated after step {report.step}"):
            pass


def fit(folder: Path, steps: int | None, last: int | None = None, **sections: Any) -> str | None:
    """A run in this process, profiled: the digest of its weights, or None if it was stopped after step `last`."""
    trainer = runs.trainer(runs.config(**sections), observers=[Marks()])
    trainer.stop_requested = lambda: trainer.progress.step == last
    with profiled(steps, trainer.when_stepped, torch.device("cpu"), folder, rank=0, done=0):
        try:
            return trainer.fit().weight_digest
        except StopRequested:
            return None


def test_the_profile_changes_nothing_in_the_run(tmp_path: Path) -> None:
    assert fit(tmp_path / "with", 3) == fit(tmp_path / "without", None)
    (trace,) = (tmp_path / "with").rglob("*.gz")
    assert steps_of(trace) == [9, 10, 11]
    assert trace == tmp_path / "with" / "profile" / "rank-0.9.pt.trace.json.gz"
    assert not (tmp_path / "without").exists()


def test_a_reallocation_lies_in_the_step_that_it_belongs_to(tmp_path: Path) -> None:
    assert fit(tmp_path, 4, method={"name": "set", "period": 1}) is not None
    (trace,) = tmp_path.rglob("*.gz")
    events = {event["name"]: event for event in events_of(trace) if event.get("ph") == "X"}
    for step in (9, 10, 11, 12):
        whole, mark = events[f"ProfilerStep#{step - 1}"], events[f"reallocated after step {step}"]
        assert whole["ts"] <= mark["ts"] and mark["ts"] + mark["dur"] <= whole["ts"] + whole["dur"]


def test_skipped_steps_are_steps_of_the_trace(tmp_path: Path) -> None:
    trainer = runs.trainer(runs.config())
    told: list[int] = []
    trainer.when_stepped.append(lambda: told.append(trainer.progress.step))
    for number, batch in enumerate(trainer.data.train.epoch()):
        images, labels = batch[0]
        trainer.train_step([(images * (float("nan") if number == 1 else 1), labels)])
        if number == 2:
            break
    assert told == [1, 2, 3]
    assert trainer.progress.skipped_steps == 1


def test_a_run_that_ends_early_writes_the_steps_that_there_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert fit(tmp_path, 900, last=10) is None
    (trace,) = tmp_path.rglob("*.gz")
    assert {9, 10} <= set(steps_of(trace)) <= {9, 10, 11}
    assert f"profile of 2 steps from step 9: {trace}" in caplog.text


def test_a_run_that_ends_in_the_warm_up_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert fit(tmp_path, 2, last=WAIT + 1) is None
    assert not list(tmp_path.rglob("*.gz"))
    assert f"no step was recorded; {WAIT + 1} were done, and recording begins after {WAIT + WARMUP}" in caplog.text


def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").write_text("a file in the place of the folder")
    assert fit(tmp_path, 1) is not None
    assert caplog.text.count("cannot be written") == 1


def test_each_worker_writes_its_own(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a", log={"profile": 2})
    result = runs.dist_train("--config", runs.write_config(tmp_path, settings), workers=2)
    assert result.returncode == 0, result.stderr
    traces = sorted((tmp_path / "a" / "profile").iterdir())
    assert [trace.name for trace in traces] == [f"rank-{rank}.9.pt.trace.json.gz" for rank in (0, 1)]
    assert [steps_of(trace) for trace in traces] == [[9, 10], [9, 10]]
    assert result.stderr.count("profile of 2 steps from step 9") == 1
