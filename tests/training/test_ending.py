"""Evaluation every few epochs, and the end of a run that no longer gets better."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dynsparse.cli.actions.held_run import finished
from dynsparse.cli.main import main
from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.errors import StopRequested, UserError
from dynsparse.runtime import Worker
from dynsparse.tools.inspection import accuracies
from dynsparse.training.callbacks import standard_observers
from dynsparse.training.callbacks.closing import closing_text
from dynsparse.training.callbacks.progress import ProgressLines
from dynsparse.training.callbacks.records import epoch_record
from dynsparse.training.checkpoint import CheckpointFolder, read
from dynsparse.training.evaluate import Evaluation, Evaluations
from dynsparse.training.progress import Progress, is_of_now
from dynsparse.training.resume import checkpoints_of, find_resume_point, is_finished
from dynsparse.training.trainer import Trainer
from tests.ranks import run_distributed
from tests.tools.report.pages import Page
from tests.training import runs
from tests.training.test_folder import open_folder
from tests.training.test_loop import Recorder
from tests.training.test_resume import assert_same, state_after

#: Nothing moves, so no evaluation is better than the first.
STILL: dict[str, Any] = {
    "model": {"name": "mnist_mlp", "hidden": [24, 12], "batch_norm": False},
    "method": {"name": "static"},
    "data": {"validation_samples": 20},
}
NO_RATE = {"lr": {"name": "steps", "table": 0.0}}


@pytest.mark.parametrize(
    ("early_stop", "ends", "why"),
    [
        (
            {"patience": 2},
            6,
            "early stop after epoch 6: test top-1 has not risen in 2 evaluations; the best is 82.00 %",
        ),
        (
            {"patience": 2, "improvement": 3.0},
            4,
            "has not risen by more than 3 points in 2 evaluations; the best is 82",
        ),
        ({"patience": 1}, 3, "has not risen in 1 evaluation; the best is 80.00 %"),
        ({"patience": 9}, 7, None),
        ({}, 7, None),
    ],
)
def test_a_run_ends_when_it_no_longer_gets_better(
    early_stop: dict[str, Any], ends: int, why: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    accuracies = iter([50.0, 80.0, 80.0, 82.0, 81.0, 82.0, 90.0])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: Evaluations(Evaluation(1.0, next(accuracies), 90.0, 50)))
    settings = runs.config(train={"epochs": 7, "early_stop": early_stop}, checkpoint={"every_epochs": 9})
    trainer = runs.trainer(settings, checkpoints=CheckpointFolder(tmp_path, keep=1))
    summary = trainer.fit()
    assert (summary.status, summary.epochs, summary.steps) == ("done", ends, 8 * ends)
    assert (summary.reason is None) == (why is None)
    assert (why or "") in (summary.reason or "")
    assert read(tmp_path / "latest.pt")["progress"]["epoch"] == ends
    assert (summary.reason or "ended early") in closing_text(summary, tmp_path, tensorboard=False) or why is None


def test_evaluations_before_the_network_is_settled_do_not_try_patience() -> None:
    """Pruning, for example, makes the network worse until it has its sparsity: that is no reason to stop."""
    progress = Progress()
    for top1 in (80.0, 70.0, 60.0):
        assert not progress.take(Evaluations(Evaluation(1.0, top1, 90.0, 50)), eligible=False)
    assert (progress.idle_evaluations, progress.top1_to_beat, progress.best_top1) == (0, None, None)
    assert progress.take(Evaluations(Evaluation(1.0, 65.0, 90.0, 50)))
    assert not progress.take(Evaluations(Evaluation(1.0, 64.0, 90.0, 50)))
    assert (progress.idle_evaluations, progress.top1_to_beat, progress.best_top1) == (1, 65.0, 65.0)


def stopped_early(worker: Worker) -> tuple[Any, Any]:
    """The last states of a run that ends early, undisturbed; and stopped in mid-epoch and resumed."""
    train = {"epochs": 9, "early_stop": {"patience": 2}, "evaluate_every_epochs": 2, **NO_RATE}
    settings = runs.config(**STILL, train=train)
    whole = state_after(worker, settings, None, None)
    mine = state_after(worker, settings, None, 27)
    half = sync.from_rank_0(lambda: mine)
    half["progress"]["seconds"] = 0.0
    return whole, state_after(worker, settings, half, None)


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_all_ranks_end_at_once_and_a_resumed_run_at_the_same_step(ranks: int) -> None:
    """Evaluated after epochs 2, 4 and 6, of which the first sets what the others are to beat."""
    whole, resumed = run_distributed(stopped_early, ranks)[0]
    assert (whole["progress"]["epoch"], whole["progress"]["idle_evaluations"]) == (6, 2)
    assert_same(resumed, whole)


def test_a_run_that_has_ended_early_is_finished_unless_given_more_patience(tmp_path: Path) -> None:
    early = {"epochs": 4, "early_stop": {"patience": 1}, **NO_RATE}
    settings = runs.config(**STILL, train=early, runs=str(tmp_path), name="a", log={"tensorboard": False})
    command = ["--config", runs.write_config(tmp_path, settings), "--resume", "auto"]
    first = runs.dist_train(*command)
    assert first.returncode == 0, first.stderr
    assert "ended early" in first.stdout
    assert runs.summary(settings.folder)["reason"].startswith("early stop after epoch 2: validation top-1 has not ris")
    again = runs.dist_train(*command)
    assert again.returncode == 0
    assert "is the end of its run (early stop after epoch 2: " in again.stdout
    assert again.stdout.endswith("set train.early_stop.patience= to train on\n")
    on = runs.dist_train(*command, "train.early_stop.patience=9")
    assert on.returncode == 0, on.stderr
    summary = runs.summary(settings.folder)
    assert (summary["status"], summary["epochs"], summary["reason"]) == ("done", 4, None)


def stopped_at(tmp_path: Path, step: int, **train: Any) -> RunConfig:
    """Return the config of a run of 5 epochs of 8 steps that was asked to stop after a step."""
    settings = runs.config(train={"epochs": 5} | train, runs=str(tmp_path), name="a", log={"tensorboard": False})
    open_folder(settings, resume=None, overwrite=False)
    trainer = runs.trainer(settings, observers=standard_observers(settings), checkpoints=checkpoints_of(settings))
    trainer.stop_requested = lambda: trainer.progress.step == step
    with pytest.raises(StopRequested):
        trainer.fit()
    assert runs.summary(settings.folder)["status"] == "stopped"
    return settings


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (27, ["train.epochs=3"]),
        (24, ["train.epochs=3"]),
        (27, ["train.epochs=3", "train.early_stop.patience=9"]),
    ],
    ids=["within an epoch", "after an epoch", "with patience"],
)
def test_a_run_that_fewer_epochs_end_is_evaluated_and_done(tmp_path: Path, step: int, changes: list[str]) -> None:
    """None of its epochs was: they are evaluated every fifth time. Then there is nothing left to do."""
    settings = stopped_at(tmp_path, step, evaluate_every_epochs=5)
    command = ["--config", runs.write_config(tmp_path, settings), "--resume", "auto"]
    ended = runs.dist_train(*command, *changes)
    assert ended.returncode == 0, ended.stderr
    summary, saved = runs.summary(settings.folder), settings.folder / "checkpoints"
    assert (summary["status"], summary["steps"]) == ("done", step)
    trainer = runs.trainer(settings)
    trainer.load(read(saved / "latest.pt"))
    found = trainer.evaluate().test
    assert found is not None
    assert summary["test_top1"] == summary["best_top1"] == found.top1
    assert read(saved / "latest.pt")["progress"]["evaluated_at"] == step
    assert read(saved / "best.pt")["progress"]["test_top1"] == found.top1
    again = runs.dist_train(*command, *changes)
    assert "has all 3 epochs behind it; set train.epochs= to train on" in again.stdout
    on = runs.dist_train(*command)
    assert on.returncode == 0, on.stderr
    assert (runs.summary(settings.folder)["status"], runs.summary(settings.folder)["steps"]) == ("done", 40)


def test_less_patience_ends_a_run_at_an_epoch_that_is_evaluated_then(tmp_path: Path) -> None:
    settings = stopped_at(tmp_path, 32, evaluate_every_epochs=3)
    state = read(settings.folder / "checkpoints" / "latest.pt")
    state["progress"]["idle_evaluations"] = 1
    trainer = runs.trainer(runs.config(train={"epochs": 5, "evaluate_every_epochs": 3, "early_stop": {"patience": 1}}))
    trainer.load(state)
    assert trainer.fit().steps == 32
    assert trainer.progress.evaluated_at == 32


def test_the_forecast_of_the_start_stays_that_of_a_resumed_run(tmp_path: Path) -> None:
    """A resumed network is built without its first masks, which may be others than the config's numbers."""
    settings = stopped_at(tmp_path, 19, epochs=3)
    forecast = runs.summary(settings.folder)["ever_active_forecast"]
    trainer = runs.trainer(settings)
    assert trainer.sparse.method.forecast is not None
    trainer.sparse.method.forecast = replace(trainer.sparse.method.forecast, share=0.123)
    trainer.load(read(settings.folder / "checkpoints" / "latest.pt"))
    assert trainer.fit().ever_active_forecast == forecast is not None


@pytest.mark.parametrize("status", ["done", "stopped", "failed"])
def test_a_run_is_finished_where_its_summary_says_done_after_that_step(
    tmp_path: Path, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A finished run of other settings is not taken for the one that is asked for."""
    settings = runs.config(runs=str(tmp_path), name="a")
    open_folder(settings, resume=None, overwrite=False)
    runs.trainer(settings, checkpoints=checkpoints_of(settings)).fit()
    point = find_resume_point(settings, resume="auto", overwrite=False)
    assert point is not None
    for steps in (15, 16):
        (settings.folder / "summary.json").write_text(json.dumps({"status": status, "steps": steps}))
        assert is_finished(settings, point) == (status == "done" and steps == 16)
    if status == "done":
        assert "has all 2 epochs behind it" in (finished(settings, point) or "")
        assert not caplog.messages
        other = runs.config(runs=str(tmp_path), name="a", train={"clip": {"norm": 1.0}})
        assert finished(other, point) is not None
        assert caplog.messages == ["the run is done, and train.clip.norm=1.0 (was None) has no effect"]
        for sections in ({"method": {"name": "static"}}, {"sparsity": {"fc": 0.5}}):
            with pytest.raises(UserError, match=r"resume with the same"):
                finished(runs.config(runs=str(tmp_path), name="a", **sections), point)


def test_without_validation_samples_the_test_decides_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    train = {"epochs": 1, "early_stop": {"patience": 1}}
    runs.trainer(runs.config(train=train)).fit()
    assert "the test samples decide when to stop" in caplog.text
    caplog.clear()
    runs.trainer(runs.config(train=train, data={"validation_samples": 20})).fit()
    assert "the test samples decide" not in caplog.text


@pytest.fixture(scope="module")
def seldom(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """A run of 5 epochs that are evaluated every second time, and the reports of it."""
    folder = tmp_path_factory.mktemp("runs")
    recorder = Recorder()
    train = {"epochs": 5, "evaluate_every_epochs": 2}
    settings = runs.config(train=train, runs=str(folder), name="a", checkpoint={"keep": 9})
    open_folder(settings, resume=None, overwrite=False)
    observers = [recorder, *standard_observers(settings)]
    runs.trainer(settings, observers=observers, checkpoints=checkpoints_of(settings)).fit()
    return settings.folder, recorder


def test_every_second_epoch_is_evaluated_and_the_last(seldom: tuple[Path, Recorder]) -> None:
    folder, recorder = seldom
    assert [report.results.test is not None for report in recorder.epochs] == [False, True, False, True, True]
    lines = [line for line in runs.metrics(folder) if line["kind"] == "epoch"]
    assert [line["epoch"] for line in lines if "test_top1" in line] == [1, 3, 4]
    assert [line["epoch"] for line in lines if "best_top1_on" in line] == [1, 3, 4]
    assert [line["best_top1"] is None for line in lines] == [True, False, False, False, False]
    assert all("train_loss" in line and "layers" in line for line in lines)
    summary = runs.summary(folder)
    assert summary["test_top1"] == lines[-1]["test_top1"]
    assert summary["best_top1"] == max(lines[epoch]["test_top1"] for epoch in (1, 3, 4))
    best = read(folder / "checkpoints" / "best.pt")["progress"]
    assert best["test_top1"] == summary["best_top1"]
    assert best["evaluated_at"] == best["step"]


def test_training_is_the_same_however_seldom_it_is_evaluated(seldom: tuple[Path, Recorder]) -> None:
    always = runs.trainer(runs.config(train={"epochs": 5})).fit()
    assert always.weight_digest == runs.summary(seldom[0])["weight_digest"]


def test_the_report_shows_the_epochs_that_were_evaluated(seldom: tuple[Path, Recorder], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = runs.python("-m", "dynsparse", "report", seldom[0], "--out", page)
    assert done.returncode == 0, done.stderr
    assert "test top-1, %" in page.read_text()


def test_accuracies_of_an_epoch_before_are_not_told_as_the_checkpoints_own(seldom: tuple[Path, Recorder]) -> None:
    by_epoch = [read(seldom[0] / "checkpoints" / f"step-{8 * n:09}.pt")["progress"] for n in (3, 4)]
    assert [is_of_now(progress) for progress in by_epoch] == [False, True]
    assert accuracies(by_epoch[0]).endswith("(measured after step 16)")
    assert "measured" not in accuracies(by_epoch[1])


def test_everything_that_shows_a_stopped_run_says_when_it_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stopped_at(tmp_path, 19).folder
    assert runs.summary(folder)["evaluated_at"] == 16
    assert re.search(r"accuracies measured after step +16\n", capsys.readouterr().out)
    assert main(["inspect", str(folder)]) == 0
    assert "chosen on the test data (measured after step 16)" in capsys.readouterr().out
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluated_at"] == 16
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert "accuracies measured after step 16" in Page.read(tmp_path / "page.html").words()


def test_a_resume_after_the_last_step_of_an_epoch_has_no_speed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is trained in what is left of the epoch."""
    state = read(stopped_at(tmp_path, 16).folder / "checkpoints" / "latest.pt")
    caplog.set_level("INFO")
    recorder = Recorder()
    settings = runs.config(train={"epochs": 3}, log={"progress": "lines"})
    trainer = runs.trainer(settings, observers=[recorder, ProgressLines()])
    trainer.load(state)
    trainer.fit()
    first, second = recorder.epochs
    assert (first.step, first.images_per_second, first.gradient_bytes) == (16, None, None)
    assert "images_per_second" not in epoch_record(first)["timing"]
    assert second.images_per_second is not None
    lines = [line for line in caplog.messages if line.startswith("epoch ")]
    assert lines[0].endswith("? images/s  ETA ?") and lines[1].endswith("ETA 00:00")
    last = runs.trainer(runs.config(train={"epochs": 2}))
    last.load(state)
    assert last.fit().images_per_second is None


def test_an_epoch_without_an_evaluation_is_never_taken_for_the_best(seldom: tuple[Path, Recorder]) -> None:
    """The run goes back to epoch 3, whose figures are those of epoch 2, the best of then."""
    folder, _ = seldom
    settings = runs.config(
        train={"epochs": 5, "evaluate_every_epochs": 2}, runs=str(folder.parent), name="a", checkpoint={"keep": 9}
    )
    path = folder / "checkpoints" / "step-000000024.pt"
    progress = read(path)["progress"]
    assert progress["best_top1"] == progress["test_top1"]
    (folder / "checkpoints" / "best.pt").unlink()
    assert open_folder(settings, resume=str(path), overwrite=False) is not None
    assert (folder / "checkpoints" / "latest.pt").exists()
    assert not (folder / "checkpoints" / "best.pt").exists()
