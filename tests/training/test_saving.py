"""Checkpoints are written while training goes on, and change nothing in it."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training import checkpoint
from dynsparse.training.callbacks import Callback, StepReport
from dynsparse.training.checkpoint import CheckpointFolder, InBackground, SaveTimer, checksum, kept, read
from dynsparse.training.checkpoint import folder as checkpoint_folder
from tests.ranks import run_distributed
from tests.training import runs


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_timer_counts_from_the_last_save() -> None:
    clock = Clock()
    timer = SaveTimer(2.5, clock)
    found = []
    for now in (100, 249, 250, 251):
        clock.now = now
        found.append(timer.is_due())
    assert found == [False, False, True, True]
    timer.saved()
    clock.now = 400
    assert not timer.is_due()
    clock.now = 401
    assert timer.is_due()


def test_without_minutes_it_is_never_due() -> None:
    clock = Clock()
    timer = SaveTimer(None, clock)
    clock.now = 1e9
    assert not timer.is_due()


def test_one_act_at_a_time_and_errors_come_up_once() -> None:
    background, gate, done = InBackground(), threading.Event(), []

    def first() -> None:
        assert gate.wait(60)
        done.append("first")

    background.start(first)
    assert not background.wait(0)
    threading.Timer(0, gate.set).start()
    background.start(lambda: done.append("second"))
    background.wait()
    assert done == ["first", "second"]

    def fails() -> None:
        raise ZeroDivisionError

    background.start(fails)
    with pytest.raises(ZeroDivisionError):
        background.wait()
    assert background.wait()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("background")]


def state(step: int) -> dict[str, Any]:
    return {"progress": {"step": step}}


def test_beginning_a_save_waits_for_nothing(tmp_path: Path) -> None:
    folder, gate = CheckpointFolder(tmp_path, keep=2), threading.Event()

    def content() -> dict[str, Any]:
        assert gate.wait(60)
        return state(5)

    folder.begin(content, 5)
    assert not folder.files()
    gate.set()
    folder.wait()
    assert read(tmp_path / "latest.pt") == state(5)


def test_a_disk_that_is_too_slow_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each save waits for the one before, 7 s by this clock; none is left out."""
    folder, clock, write = CheckpointFolder(tmp_path, keep=9), Clock(), checkpoint.write
    gate = threading.Event()

    def look_at_the_clock() -> float:
        gate.set()  # Looked at where the waiting begins: until then the write takes.
        clock.now += 7
        return clock.now

    def slow(path: Path, content: Any, before: Callable[[], None]) -> None:
        assert gate.wait(60)
        gate.clear()
        write(path, content, before)

    monkeypatch.setattr(checkpoint_folder.time, "monotonic", look_at_the_clock)
    monkeypatch.setattr(kept, "write", slow)
    for step in (1, 2, 3):
        assert folder.has_written(within=60)
        folder.begin(lambda step=step: state(step), step)  # type: ignore[misc]
    assert folder.has_written(within=60)
    assert [path.name[-4:] for path in folder.files()] == ["3.pt", "2.pt", "1.pt"]
    assert caplog.text.count("training waited 7.0 s for the checkpoint before to be written") == 1


def waits_in_turns(worker: Worker, folder: Path) -> int:
    """Return how often rank 0 found its writer still busy, while the other rank waited for its answer."""
    checkpoints = CheckpointFolder(folder, keep=9) if worker.is_main else None
    settings = runs.config(distributed={"timeout_seconds": 0.2})
    trainer = runs.trainer(settings, worker, checkpoints=checkpoints)
    in_vain = 0
    if checkpoints is not None:
        gate, has_written = threading.Event(), checkpoints.has_written

        def content() -> dict[str, Any]:
            assert gate.wait(60)
            return state(1)

        def counted(*, within: float) -> bool:
            nonlocal in_vain
            assert within < 0.2
            done = has_written(within=within)
            in_vain += not done
            if in_vain == 9:  # Four timeouts and a half.
                gate.set()
            return done

        checkpoints.has_written = counted  # type: ignore[method-assign]
        checkpoints.begin(content, 1)
    trainer.saving.await_writer()
    return in_vain


def test_a_slow_disk_is_not_taken_for_a_rank_that_hangs(tmp_path: Path) -> None:
    assert run_distributed(waits_in_turns, 2, tmp_path)[0] >= 9


def deferred(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Let each save be written as late as can be: when the next begins, or at the end. Returns what is still to be."""
    pending: list[Callable[[], None]] = []

    def run(self: InBackground, seconds: float | None = None) -> bool:
        while pending:
            pending.pop()()
        return True

    def start(self: InBackground, act: Callable[[], None]) -> None:
        run(self)
        pending.append(act)

    monkeypatch.setattr(InBackground, "start", start)
    monkeypatch.setattr(InBackground, "wait", run)
    return pending


SPARSE_METHODS: list[dict[str, Any]] = [
    {"method": {"name": "dsr", "period": 1, "initial_threshold": 0.02, "target_moves": 30}},
    {"method": {"name": "deepr"}, "train": {"optimizer": {"name": "adamw"}}},
    {"method": {"name": "sparse_momentum", "period": 2}, "model": {"name": "small_cnn", "channels": [6, 8]}},
    {"method": {"name": "dense"}, "train": {"optimizer": {"name": "sgd", "momentum": 0.9}}},
]


@pytest.mark.parametrize("sections", SPARSE_METHODS, ids=lambda sections: str(sections["method"]["name"]))
def test_a_save_holds_its_own_step_however_late_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    """File by file equal to those that are written at once: a snapshot shares nothing that training changes."""
    settings = runs.config(checkpoint={"every_steps": 3}, **sections)
    at_once, late = CheckpointFolder(tmp_path / "a", keep=99), CheckpointFolder(tmp_path / "b", keep=99)
    with monkeypatch.context() as patch:
        patch.setattr(InBackground, "start", lambda self, act: act())
        runs.trainer(settings, checkpoints=at_once).fit()
    with monkeypatch.context() as patch:
        pending = deferred(patch)
        trainer = runs.trainer(settings, checkpoints=late)
        snapshot = trainer.run.snapshot

        def alone(ranks: Any) -> Any:
            assert not pending, "one snapshot at a time is in memory"
            return snapshot(ranks)

        trainer.run.snapshot = alone  # type: ignore[method-assign]
        trainer.fit()
    names = [path.name for path in at_once.files()]
    assert len(names) >= 6
    assert [path.name for path in late.files()] == names
    for name in names:
        one, other = read(at_once.folder / name), read(late.folder / name)
        one["progress"].pop("seconds")
        other["progress"].pop("seconds")
        assert checksum(one) == checksum(other), name


def digests(worker: Worker, settings: RunConfig, folder: Path | None) -> Any:
    checkpoints = CheckpointFolder(folder, keep=2) if folder is not None and worker.is_main else None
    summary = runs.trainer(settings, worker, checkpoints=checkpoints).fit()
    return summary.mask_digest, summary.weight_digest, summary.rank_digests, summary.test_top1


@pytest.mark.parametrize("world_size", [1, 3])
def test_saving_at_every_step_changes_nothing(tmp_path: Path, world_size: int) -> None:
    """The network has BatchNorm, whose statistics differ from rank to rank."""
    model = {"name": "small_cnn", "channels": [6, 8]}
    never, always = runs.config(model=model), runs.config(model=model, checkpoint={"every_steps": 1})
    quiet = run_distributed(digests, world_size, never, None)
    assert run_distributed(digests, world_size, always, tmp_path) == quiet
    assert read(tmp_path / "latest.pt")["progress"]["step"] == 16


def saved_by_the_clock(worker: Worker, settings: RunConfig, folder: Path) -> list[int]:
    """The steps at which this rank took part in a save, where each step takes 20 s on rank 0's clock."""
    checkpoints = CheckpointFolder(folder, keep=99) if worker.is_main else None
    trainer = runs.trainer(settings, worker, checkpoints=checkpoints)
    assert trainer.saving.timer._seconds == (60 if worker.is_main else None)
    if worker.is_main:
        trainer.saving.timer = SaveTimer(1, lambda: 20.0 * trainer.progress.step)
    steps, save = [], trainer.saving.save

    def note(**options: bool) -> None:
        steps.append(trainer.progress.step)
        save(**options)

    trainer.saving.save = note  # type: ignore[method-assign]
    trainer.fit()
    return steps


def test_minutes_are_counted_on_rank_0_and_kept_by_all(tmp_path: Path) -> None:
    """Due before the step that begins 60 s after the last save, saved after it; an epoch has 8 steps."""
    settings = runs.config(checkpoint={"every_minutes": 1})
    expected = [0, 4, 8, 8, 12, 16, 16]
    assert run_distributed(saved_by_the_clock, 2, settings, tmp_path) == [expected, expected]
    assert [int(path.name[5:14]) for path in CheckpointFolder(tmp_path, keep=9).files()] == [16, 12, 8, 4, 0]


class At(Callback):
    """Does something to the disk after a step, with nothing being written: which was first must not matter."""

    def __init__(self, acts: dict[int, Callable[[], None]], checkpoints: CheckpointFolder) -> None:
        self.acts = acts
        self.checkpoints = checkpoints

    def on_step(self, report: StepReport) -> None:
        if act := self.acts.get(report.step):
            self.checkpoints.wait()
            act()


def vanish(folder: Path) -> None:
    shutil.rmtree(folder)


def obstruct(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("in the way")


def fit_with(folder: Path, acts: dict[int, Callable[[], None]]) -> tuple[Any, CheckpointFolder]:
    settings = runs.config(checkpoint={"every_steps": 3}, log={"every_steps": 1})
    checkpoints = CheckpointFolder(folder, keep=2)
    trainer = runs.trainer(settings, observers=[At(acts, checkpoints)], checkpoints=checkpoints)
    return trainer, checkpoints


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "checkpoints"
    trainer, checkpoints = fit_with(folder, {5: lambda: vanish(folder.parent)})
    assert trainer.fit().status == "done"
    assert [path.name for path in checkpoints.files()] == ["step-000000016.pt", "step-000000015.pt"]
    assert read(folder / "latest.pt")["progress"]["step"] == 16


def test_training_goes_on_without_a_folder_and_the_next_save_may_succeed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints"
    trainer, checkpoints = fit_with(folder, {5: lambda: obstruct(folder), 8: folder.unlink})
    assert trainer.fit().status == "done"
    assert "step-000000006.pt: cannot be written" in caplog.text
    assert "Training goes on" in caplog.text
    assert "step-000000009" not in caplog.text
    assert read(folder / "latest.pt")["progress"]["step"] == 16


def test_a_run_whose_last_save_failed_ends_with_the_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "checkpoints"
    trainer, _ = fit_with(folder, {10: lambda: obstruct(folder)})
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=r"step-000000016\.pt: cannot be written"):
        trainer.fit()
    assert trainer.progress.epoch == 2
    assert "step-000000012.pt: cannot be written" in caplog.text


def test_what_no_disk_is_to_blame_for_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, content: Any, before: Callable[[], None]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(kept, "write", broken)
    with pytest.raises(ZeroDivisionError):
        runs.trainer(runs.config(), checkpoints=CheckpointFolder(tmp_path, keep=2)).fit()
