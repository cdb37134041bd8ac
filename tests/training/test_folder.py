from __future__ import annotations

import errno
import functools
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynsparse.config.schema import RunConfig
from dynsparse.errors import StopRequested, StorageError, UserError
from dynsparse.training.checkpoint import read, set_aside_after, write
from dynsparse.training.resume import (
    begun_by,
    checkpoints_of,
    differences,
    find_resume_point,
    is_finished,
    require_writable,
    take_folder,
)
from tests.training import runs


def open_folder(
    config: RunConfig, *, resume: str | None, overwrite: bool, launch: str | None = None, retry: bool = False
) -> dict[str, Any] | None:
    """Both halves at once, as in a run where nothing else is wrong; the state to resume from."""
    start = find_resume_point(config, resume=resume, overwrite=overwrite, launch=launch, retry=retry)
    take_folder(config, start, overwrite=overwrite, launch=launch)
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
    with pytest.raises(UserError, match=r"a exists; resume it with --resume auto, replace it with --overwrite"):
        open_folder(settings, resume=None, overwrite=False)
    saved = open_folder(settings, resume="auto", overwrite=False)
    assert saved is not None
    assert saved["progress"]["step"] == 16
    assert open_folder(settings, resume=None, overwrite=True) is None
    assert not list((settings.folder / "checkpoints").iterdir())


@pytest.mark.parametrize("content", ["three years of work", "model: {name: mnist_mlp}"])
def test_overwrite_replaces_runs_only(tmp_path: Path, content: str) -> None:
    """A folder with other things stays as it is, and so does one that holds the user's own config."""
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
    (tmp_path / "a" / "history.jsonl").touch()
    settings = runs.config(runs=str(tmp_path), name="a")
    open_folder(settings, resume=None, overwrite=True)
    assert sorted(path.name for path in settings.folder.iterdir()) == ["checkpoints", "config.yaml", "notes.txt"]


def test_a_lock_alone_is_no_run(tmp_path: Path) -> None:
    """The lock is that of a start which holds the folder, or which died before it took it."""
    settings = runs.config(runs=str(tmp_path), name="a")
    settings.folder.mkdir()
    (settings.folder / "lock.json").touch()
    (settings.folder / "lock-0123456789abcdef.partial").touch()
    assert find_resume_point(settings, resume=None, overwrite=False) is None


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


def test_a_folder_that_may_not_be_made_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "fixed").mkdir(mode=0o555)
    require_writable(tmp_path / "new" / "a")
    assert not (tmp_path / "new").exists()
    rule = r"fixed/runs/a: cannot be written \(in .*: permission denied\); set runs="
    with runs.nobody_if_root(), pytest.raises(UserError, match=rule):
        require_writable(tmp_path / "fixed" / "runs" / "a")


def test_looking_for_a_start_changes_nothing(tmp_path: Path) -> None:
    finished_run(tmp_path)
    settings = runs.config(runs=str(tmp_path), name="a")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    earlier = settings.folder / "checkpoints" / "step-000000008.pt"
    for resume, overwrite in ((None, True), ("auto", False), (str(earlier), False)):
        find_resume_point(settings, resume=resume, overwrite=overwrite)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_first_attempt_that_left_no_checkpoint_is_begun_anew(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a")
    open_folder(settings, resume=None, overwrite=False)
    (settings.folder / "slurm.log").write_text("kept")
    assert open_folder(settings, resume="auto", overwrite=False) is None
    assert (settings.folder / "slurm.log").exists()


def test_the_best_of_an_abandoned_future_is_set_aside_too(tmp_path: Path) -> None:
    """Nothing is overwritten when the same step is set aside twice."""
    folder = checkpoints_of(runs.config(runs=str(tmp_path), name="a"))
    for step in (4, 8):
        folder.save({"progress": {"step": step}}, step, best=True)
    set_aside_after(folder.folder, 4)
    folder.save({"progress": {"step": 8}}, 8, best=False)
    set_aside_after(folder.folder, 4)
    names = {path.name for path in folder.folder.glob("*.stale*")}
    assert names == {"best.pt.stale", "step-000000008.pt.stale", "step-000000008.pt.stale1"}


def test_a_best_that_cannot_be_read_for_the_moment_stays(tmp_path: Path) -> None:
    folder = checkpoints_of(runs.config(runs=str(tmp_path), name="a"))
    folder.save({"progress": {"step": 4}}, 4, best=True)

    def away(path: Path) -> Any:
        raise StorageError(f"{path}: Input/output error")

    with pytest.raises(StorageError):
        set_aside_after(folder.folder, 100, away)
    assert (folder.folder / "best.pt").exists()
    assert not list(folder.folder.glob("*.stale*"))


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


def test_latest_follows_a_run_that_goes_back_to_its_best(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a")
    early, late = trained(settings, steps=5), trained(settings, steps=10)
    open_folder(settings, resume=None, overwrite=False)
    checkpoints_of(settings).save(early, 5, best=True)
    checkpoints_of(settings).save(late, 10)
    folder = settings.folder / "checkpoints"
    open_folder(settings, resume=str(folder / "best.pt"), overwrite=False)
    assert {name: read(folder / f"{name}.pt")["progress"]["step"] for name in ("latest", "best")} == {
        "latest": 5,
        "best": 5,
    }


COMMANDS: list[dict[str, Any]] = [
    {"resume": None, "overwrite": False},
    {"resume": None, "overwrite": True},
    {"resume": "auto", "overwrite": False},
]


@pytest.mark.parametrize("command", COMMANDS, ids=["nothing", "--overwrite", "--resume auto"])
@pytest.mark.parametrize("retry", [True, False], ids=["after a fault", "as machines come and go"])
def test_another_attempt_of_a_launch_goes_on(tmp_path: Path, command: dict[str, Any], retry: bool) -> None:
    """Whatever its command line says; first before there is a checkpoint, then with one."""
    if command["overwrite"]:
        finished_run(tmp_path, seed=4)
    settings = runs.config(runs=str(tmp_path), name="a")
    assert open_folder(settings, **command, launch="job-1") is None
    assert open_folder(settings, **command, launch="job-1", retry=retry) is None, "no checkpoint yet"
    checkpoints_of(settings).save({**trained(settings, steps=5)}, 5)
    for _ in range(2):
        state = open_folder(settings, **command, launch="job-1", retry=retry)
        assert state is not None
        assert (state["progress"]["step"], state["config"]["seed"]) == (5, 3)


def trained(settings: RunConfig, steps: int) -> dict[str, Any]:
    """Train for some steps and return what a checkpoint would hold."""
    trainer = runs.trainer(settings)
    trainer.stop_requested = lambda: trainer.progress.step == steps
    with pytest.raises(StopRequested):
        trainer.fit()
    return trainer.run.save([trainer.run.of_this_rank()])


def test_an_attempt_that_never_took_the_folder_counts_for_nothing(tmp_path: Path) -> None:
    """It died before: the next one still replaces the old run, though torchrun calls it a later attempt."""
    finished_run(tmp_path, seed=4)
    settings = runs.config(runs=str(tmp_path), name="a")
    with pytest.raises(UserError, match="a exists"):
        open_folder(settings, resume=None, overwrite=False, launch="job-1", retry=True)
    assert open_folder(settings, resume=None, overwrite=True, launch="job-1", retry=True) is None
    assert not checkpoints_of(settings).files()


def test_another_launch_is_not_taken_for_a_later_attempt(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a")
    open_folder(settings, resume=None, overwrite=False, launch="job-1")
    for launch in ("job-2", None):
        with pytest.raises(UserError, match="a exists"):
            open_folder(settings, resume=None, overwrite=False, launch=launch)
    open_folder(settings, resume="auto", overwrite=False)
    with pytest.raises(UserError, match="a exists"):
        open_folder(settings, resume=None, overwrite=False, launch="job-1")


def test_another_attempt_goes_on_from_the_checkpoint_that_was_asked_for(tmp_path: Path) -> None:
    """It does so until it has one of its own. It does not return to later ones that the first attempt set aside."""
    finished_run(tmp_path, checkpoint={"every_steps": 4, "keep": 9})
    settings = runs.config(runs=str(tmp_path), name="b")
    earlier = tmp_path / "a" / "checkpoints" / "step-000000008.pt"
    for name in ("b", "a"):
        settings = runs.config(runs=str(tmp_path), name=name)
        for _ in range(2):
            state = open_folder(settings, resume=str(earlier), overwrite=False, launch="job-1", retry=True)
            assert state is not None
            assert state["progress"]["step"] == 8


@pytest.mark.parametrize("command", COMMANDS[:2], ids=["nothing", "--overwrite"])
def test_a_finished_run_is_not_taken_for_a_new_one_of_the_same_id(tmp_path: Path, command: dict[str, Any]) -> None:
    """Told apart from a fault in the very end, after which there is nothing left to do."""
    settings = runs.config(runs=str(tmp_path), name="a")
    open_folder(settings, resume=None, overwrite=False, launch="job-1")
    runs.trainer(settings, checkpoints=checkpoints_of(settings)).fit()
    (settings.folder / "summary.json").write_text(json.dumps({"status": "done", "steps": 16}))
    with pytest.raises(UserError, match=r"'job-1' has finished; to begin another there, give it an --rdzv-id"):
        find_resume_point(settings, **command, launch="job-1")
    start = find_resume_point(settings, **command, launch="job-1", retry=True)
    assert start is not None
    assert is_finished(settings, start)


def test_a_later_attempt_of_a_launch_without_any_id_is_refused(tmp_path: Path) -> None:
    finished_run(tmp_path)
    settings = runs.config(runs=str(tmp_path), name="a")
    for command in COMMANDS[:2]:
        with pytest.raises(UserError, match="cannot tell whose it is; give torchrun an --rdzv-id"):
            find_resume_point(settings, **command, retry=True)
    assert find_resume_point(settings, resume="auto", overwrite=False, retry=True) is not None


@pytest.mark.parametrize("overwrite", [True, False])
def test_killed_while_it_takes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    """Before each of its changes to the disk in turn: the next attempt replaces the old run, and is a new one."""
    finished_run(tmp_path, seed=4)
    for call in range(1, 100):
        settings = runs.config(runs=str(tmp_path / str(call)), name="a")
        if overwrite:
            shutil.copytree(tmp_path / "a", settings.folder)
        with monkeypatch.context() as patched:
            killed = dies_at(patched, call, functools.partial(open_folder, settings, overwrite=overwrite, **first))
        assert open_folder(settings, overwrite=overwrite, **first, retry=True) is None
        names = sorted(path.name for path in settings.folder.rglob("*"))
        assert names == ["checkpoints", "config.yaml", "launch.json"]
        if not killed:
            break
    assert call > 5


first: dict[str, Any] = {"resume": None, "launch": "job-1"}


def dies_at(patched: pytest.MonkeyPatch, call: int, act: Callable[[], object]) -> bool:
    """Whether `act` came to its change of the disk number `call`, and was ended before it."""
    calls = []

    def dying(self: Any, *arguments: Any, original: Any, **options: Any) -> Any:
        calls.append(self)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    for name in ("unlink", "write_text", "mkdir"):
        patched.setattr(Path, name, functools.partialmethod(dying, original=getattr(Path, name)))
    patched.setattr(os, "replace", functools.partial(dying, original=os.replace))
    try:
        act()
    except KeyboardInterrupt:
        return True
    return False


def test_a_folder_that_vanishes_comes_back_as_the_runs_own(tmp_path: Path) -> None:
    """The next attempt of the launch must know that the run is its own."""
    settings = runs.config(runs=str(tmp_path), name="a")
    take_folder(settings, None, overwrite=True, launch="this one")
    checkpoints = checkpoints_of(settings, "this one")
    shutil.rmtree(settings.folder)
    checkpoints.save(trained(settings, steps=5), 5)
    assert checkpoints.failure is None
    assert begun_by("this one", settings.folder)
    start = find_resume_point(settings, resume=None, overwrite=True, launch="this one")
    assert start is not None
    assert start.state["progress"]["step"] == 5


def test_overwrite_removes_ids_traces_and_snapshots(tmp_path: Path) -> None:
    """A new run in the folder must not continue the old one at W&B or MLflow. What others put there stays."""
    settings = runs.config(runs=str(tmp_path), name="a")
    open_folder(settings, resume=None, overwrite=False)
    (settings.folder / "profile").mkdir()
    ours = ["wandb.json", "mlflow.json", "profile/rank-0.9.pt.trace.json.gz", "memory-rank-1.pickle"]
    for name in [*ours, "profile/notes"]:
        (settings.folder / name).touch()
    open_folder(settings, resume=None, overwrite=True)
    assert [name for name in ours if (settings.folder / name).exists()] == []
    assert (settings.folder / "profile" / "notes").exists()


def outside(tmp_path: Path) -> tuple[Path, RunConfig]:
    """A checkpoint of a finished run, and the config of a run that goes on from it in a folder of its own."""
    return tmp_path / "a" / "checkpoints" / "latest.pt", runs.config(runs=str(tmp_path), name="b", train={"epochs": 3})


def steps_in(folder: Path) -> dict[str, int]:
    """The step of each checkpoint of a run."""
    return {path.name: read(path)["progress"]["step"] for path in sorted((folder / "checkpoints").glob("*.pt"))}


@pytest.mark.parametrize("again", ["the same command", "--resume auto", "as files of their own"])
def test_a_run_from_anothers_checkpoint_has_it_from_the_first(
    tmp_path: Path, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed before its first save, and has the best of the other run until it has a better one."""
    finished_run(tmp_path, checkpoint={"keep": 9})
    checkpoint, settings = outside(tmp_path)
    best = read(checkpoint.with_name("best.pt"))["progress"]["step"]
    if again == "as files of their own":
        monkeypatch.setattr(os, "link", not_linked)
    open_folder(settings, resume=str(checkpoint), overwrite=False)
    assert steps_in(settings.folder) == {"best.pt": best, "latest.pt": 16, "step-000000016.pt": 16}
    resume = "auto" if again == "--resume auto" else str(checkpoint)
    start = find_resume_point(settings, resume=resume, overwrite=False)
    assert start is not None
    assert start.path.parent == settings.folder / "checkpoints"
    assert start.state["progress"]["step"] == 16
    with pytest.raises(UserError, match="b exists"):
        find_resume_point(settings, resume=None, overwrite=False)


def not_linked(*_: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_the_same_command_resumes_what_it_has_trained(tmp_path: Path) -> None:
    finished_run(tmp_path)
    checkpoint, settings = outside(tmp_path)
    start = open_folder(settings, resume=str(checkpoint), overwrite=False)
    assert start is not None
    trainer = runs.trainer(settings, checkpoints=checkpoints_of(settings))
    trainer.load(start)
    trainer.fit()
    again = open_folder(settings, resume=str(checkpoint), overwrite=False)
    assert again is not None
    assert again["progress"]["step"] == 24
    other = checkpoint.with_name("initial.pt")
    with pytest.raises(UserError, match="b holds another run than checkpoint"):
        open_folder(settings, resume=str(other), overwrite=False)
    assert open_folder(settings, resume=None, overwrite=True) is None
    assert sorted(path.name for path in settings.folder.rglob("*")) == ["checkpoints", "config.yaml"]


def test_the_best_of_a_later_step_does_not_come_along(tmp_path: Path) -> None:
    settings = runs.config(runs=str(tmp_path), name="a")
    open_folder(settings, resume=None, overwrite=False)
    early, late = trained(settings, steps=5), trained(settings, steps=10)
    checkpoints_of(settings).save(early, 5)
    checkpoints_of(settings).save(late, 10, best=True)
    _, other = outside(tmp_path)
    open_folder(other, resume=str(settings.folder / "checkpoints" / "step-000000005.pt"), overwrite=False)
    assert steps_in(other.folder) == {"latest.pt": 5, "step-000000005.pt": 5}


def test_a_damaged_best_does_not_come_along(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finished_run(tmp_path)
    checkpoint, settings = outside(tmp_path)
    path = checkpoint.with_name("best.pt")
    path.unlink()
    path.write_bytes(b"damaged")
    state = read(checkpoint)
    state["progress"]["best_top1"] = 100.0  # An epoch before it was better.
    checkpoint.unlink()
    write(checkpoint, state)
    open_folder(settings, resume=str(checkpoint), overwrite=False)
    assert steps_in(settings.folder) == {"latest.pt": 16, "step-000000016.pt": 16}
    assert "best.pt: damaged or no checkpoint" in caplog.text


def test_killed_while_it_takes_the_folder_for_anothers_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each of its changes to the disk in turn: no start begins anew, and the same command goes on."""
    finished_run(tmp_path)
    checkpoint, _ = outside(tmp_path)
    command: dict[str, Any] = {"resume": str(checkpoint), "overwrite": False}
    for call in range(1, 100):
        settings = runs.config(runs=str(tmp_path / str(call)), name="b", train={"epochs": 3})
        with monkeypatch.context() as patched:
            killed = dies_at(patched, call, functools.partial(open_folder, settings, **command))
        taken = (settings.folder / "origin.json").exists()
        if taken and not list(settings.folder.glob("checkpoints/*.pt")):
            with pytest.raises(UserError, match=r"\(origin\.json\), and no checkpoint of it"):
                find_resume_point(settings, resume="auto", overwrite=False)
        else:
            assert (find_resume_point(settings, resume="auto", overwrite=False) is not None) == taken
        again = open_folder(settings, **command)
        assert again is not None
        assert again["progress"]["step"] == 16
        assert set(steps_in(settings.folder)) >= {"best.pt", "latest.pt", "step-000000016.pt"}
        names = sorted(path.name for path in settings.folder.iterdir())
        assert names == ["checkpoints", "config.yaml", "origin.json"]
        if not killed:
            break
    assert call > 5


@pytest.mark.parametrize("content", ["", "[]", '{"sha256": 3}', '{"sha256": "0"}'])
def test_a_damaged_origin_tells_no_run_from_another(tmp_path: Path, content: str) -> None:
    finished_run(tmp_path)
    checkpoint, settings = outside(tmp_path)
    open_folder(settings, resume=str(checkpoint), overwrite=False)
    (settings.folder / "origin.json").write_text(content)
    with pytest.raises(UserError, match="b holds another run than checkpoint"):
        open_folder(settings, resume=str(checkpoint), overwrite=False)
    assert open_folder(settings, resume="auto", overwrite=False) is not None
    assert open_folder(settings, resume=None, overwrite=True) is None


@pytest.mark.parametrize(("step", "refused"), [(16, True), (0, False)])
def test_a_resume_in_the_history_is_a_trace_of_training(tmp_path: Path, step: int, refused: bool) -> None:
    """Unless it was at the step at which the run began, from its initial checkpoint."""
    settings = runs.config(runs=str(tmp_path), name="a")
    open_folder(settings, resume=None, overwrite=False)
    run = runs.trainer(settings).run
    checkpoints_of(settings).save(run.save([run.of_this_rank()]), 0, initial=True)
    for path in (settings.folder / "checkpoints").glob("*.pt"):
        if path.name != "initial.pt":
            path.unlink()
    lines = [{"kind": "start", "step": 0, "resumed": False}, {"kind": "start", "step": step, "resumed": True}]
    (settings.folder / "history.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    if refused:
        with pytest.raises(UserError, match=r"has trained \(history\.jsonl\), and no checkpoint"):
            find_resume_point(settings, resume="auto", overwrite=False)
    else:
        assert find_resume_point(settings, resume="auto", overwrite=False) is not None
