from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from dynsparse.config import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.checkpoint import read, set_aside_after
from dynsparse.training.folder import checkpoints_of, differences, find_start, take_folder
from tests.training import runs


def open_folder(config: RunConfig, *, resume: str | None, overwrite: bool) -> dict[str, Any] | None:
    """Both halves at once, as in a run where nothing else is wrong; the state to resume from."""
    start = find_start(config, resume=resume, overwrite=overwrite)
    take_folder(config, start, overwrite=overwrite)
    return None if start is None else start.state


def finished_run(folder: Path, **sections: object) -> None:
    settings = runs.config(runs=str(folder), name="a", **sections)
    assert open_folder(settings, resume=None, overwrite=False) is None
    runs.trainer(settings, checkpoints=checkpoints_of(settings)).fit()


def test_a_new_run_writes_its_resolved_config(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path))
    assert open_folder(settings, resume=None, overwrite=False) is None
    assert settings.folder == tmp_path / "mnist_mlp_0"
    assert (settings.folder / "config.yaml").read_text().split("\n", 1)[1] == settings.as_yaml()


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


@pytest.mark.parametrize("content", ["three years of work", "model: {name: mnist_mlp}"])
def test_overwrite_replaces_runs_only(tmp_path: Path, content: str) -> None:
    """Not a folder with other things, nor one that holds the user's own config."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.yaml").write_text(content)
    settings = runs.config(runs=str(tmp_path), name="a")
    with pytest.raises(UserError, match="holds no run"):
        open_folder(settings, resume=None, overwrite=True)
    with pytest.raises(UserError, match="a exists"):
        open_folder(settings, resume=None, overwrite=False)
    assert (tmp_path / "a" / "config.yaml").read_text() == content


def test_overwrite_removes_only_what_a_run_writes(tmp_path: Path) -> None:
    finished_run(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("kept")
    settings = runs.config(runs=str(tmp_path), name="a")
    open_folder(settings, resume=None, overwrite=True)
    assert sorted(path.name for path in settings.folder.iterdir()) == ["checkpoints", "config.yaml", "notes.txt"]


def test_resume_auto_of_nothing_is_a_new_run(tmp_path: Path) -> None:
    assert open_folder(runs.config(runs=str(tmp_path)), resume="auto", overwrite=False) is None


def test_going_back_sets_later_checkpoints_aside(tmp_path: Path) -> None:
    finished_run(tmp_path, checkpoint={"every_steps": 4, "keep": 9})
    settings = runs.config(runs=str(tmp_path), name="a")
    path = settings.folder / "checkpoints" / "step-000000008.pt"
    saved = open_folder(settings, resume=str(path), overwrite=False)
    assert saved is not None
    assert checkpoints_of(settings).files()[0] == path
    names = sorted(path.name for path in (settings.folder / "checkpoints").glob("step*.stale*"))
    assert names == ["step-000000012.pt.stale", "step-000000016.pt.stale"]


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


def test_the_best_of_an_abandoned_future_is_set_aside_too(tmp_path: Path) -> None:
    """And nothing is overwritten when the same step is set aside twice."""
    folder = checkpoints_of(runs.config(runs=str(tmp_path), name="a"))
    for step in (4, 8):
        folder.save({"progress": {"step": step}}, step, best=True)
    set_aside_after(folder.folder, 4)
    folder.save({"progress": {"step": 8}}, 8, best=False)
    set_aside_after(folder.folder, 4)
    names = {path.name for path in folder.folder.glob("*.stale*")}
    assert names == {"best.pt.stale", "step-000000008.pt.stale", "step-000000008.pt.stale1"}


def test_resume_auto_leaves_foreign_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_text("somebody else's")
    with pytest.raises(UserError, match=r"holds a metrics\.jsonl that is not of a dynsparse run"):
        open_folder(runs.config(runs=str(tmp_path), name="a"), resume="auto", overwrite=False)


def test_latest_and_best_follow_a_run_that_goes_back(tmp_path: Path) -> None:
    finished_run(tmp_path, checkpoint={"keep": 9})
    settings = runs.config(runs=str(tmp_path), name="a")
    folder = settings.folder / "checkpoints"
    (folder / "best.pt").unlink()
    open_folder(settings, resume=str(folder / "step-000000008.pt"), overwrite=False)
    assert read(folder / "latest.pt")["progress"]["step"] == 8
    assert read(folder / "best.pt")["progress"]["step"] == 8, "after one epoch the first is the best"
