from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from dynsparse.config import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.folder import checkpoints_of, differences, find_start, take_folder
from tests.training import runs


def open_folder(config: RunConfig, *, resume: str | None, overwrite: bool) -> dict[str, Any] | None:
    """Both halves at once, as in a run where nothing else is wrong."""
    saved = find_start(config, resume=resume, overwrite=overwrite)
    step = None if saved is None else saved["progress"]["step"]
    take_folder(config, resumed_step=step, overwrite=overwrite)
    return saved


def finished_run(folder: Path, **sections: object) -> None:
    settings = runs.config(runs=str(folder), name="a", **sections)
    assert open_folder(settings, resume=None, overwrite=False) is None
    runs.trainer(settings, checkpoints=checkpoints_of(settings)).fit()


def test_a_new_run_writes_its_resolved_config(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path))
    assert open_folder(settings, resume=None, overwrite=False) is None
    assert settings.folder == tmp_path / "mnist_mlp_0"
    assert (settings.folder / "config.yaml").read_text() == settings.as_yaml()


def test_an_existing_run_is_refused_resumed_or_replaced(tmp_path: Path) -> None:
    finished_run(tmp_path)
    settings = runs.config(runs=str(tmp_path), name="a")
    with pytest.raises(UserError, match=r"a exists; go on with --resume auto, replace it with --overwrite"):
        open_folder(settings, resume=None, overwrite=False)
    saved = open_folder(settings, resume="auto", overwrite=False)
    assert saved is not None
    assert saved["progress"]["step"] == 16
    assert open_folder(settings, resume=None, overwrite=True) is None
    assert not list((settings.folder / "checkpoints").iterdir())


def test_overwrite_removes_runs_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("three years of work")
    settings = runs.config(runs=str(tmp_path), name="a")
    with pytest.raises(UserError, match="holds no run"):
        open_folder(settings, resume=None, overwrite=True)
    assert (tmp_path / "a" / "thesis.txt").exists()


def test_resume_auto_of_nothing_is_a_new_run(tmp_path: Path) -> None:
    assert open_folder(runs.config(runs=str(tmp_path)), resume="auto", overwrite=False) is None


def test_going_back_sets_later_checkpoints_aside(tmp_path: Path) -> None:
    finished_run(tmp_path, checkpoint={"every_steps": 4, "keep": 9})
    settings = runs.config(runs=str(tmp_path), name="a")
    path = settings.folder / "checkpoints" / "step-000000008.pt"
    saved = open_folder(settings, resume=str(path), overwrite=False)
    assert saved is not None
    assert checkpoints_of(settings).files()[0] == path
    assert len(list((settings.folder / "checkpoints").glob("*.stale"))) == 2


def test_resuming_into_another_runs_folder_is_refused(tmp_path: Path) -> None:
    finished_run(tmp_path)
    other = runs.config(runs=str(tmp_path), name="b")
    open_folder(other, resume=None, overwrite=False)
    with pytest.raises(UserError, match="b holds another run than checkpoint"):
        open_folder(other, resume=str(tmp_path / "a" / "checkpoints" / "latest.pt"), overwrite=False)
    third = runs.config(runs=str(tmp_path), name="c")
    assert open_folder(third, resume=str(tmp_path / "a" / "checkpoints" / "latest.pt"), overwrite=False) is not None


def test_what_changed_since_the_checkpoint_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finished_run(tmp_path)
    with caplog.at_level(logging.INFO):
        open_folder(runs.config(runs=str(tmp_path), name="a", train={"epochs": 5}), resume="auto", overwrite=False)
    assert "resuming with train.epochs=5 (was 2)" in caplog.text


def test_differences() -> None:
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}) == [
        "a.c=4 (was 2)",
        "d=None (was 3)",
        "e=5 (was None)",
    ]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        open_folder(runs.config(runs=str(tmp_path / "file")), resume=None, overwrite=False)


def test_looking_for_a_start_changes_nothing(tmp_path: Path) -> None:
    finished_run(tmp_path)
    settings = runs.config(runs=str(tmp_path), name="a")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    earlier = settings.folder / "checkpoints" / "step-000000008.pt"
    for resume, overwrite in ((None, True), ("auto", False), (str(earlier), False)):
        find_start(settings, resume=resume, overwrite=overwrite)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_first_attempt_that_left_no_checkpoint_is_begun_anew(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a")
    open_folder(settings, resume=None, overwrite=False)
    (settings.folder / "slurm.log").write_text("kept")
    assert open_folder(settings, resume="auto", overwrite=False) is None
    assert (settings.folder / "slurm.log").exists()
