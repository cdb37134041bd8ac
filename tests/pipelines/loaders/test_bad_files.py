"""Files that cannot be had: the run is told which, or goes on without them, the same on every worker."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import pipelines
from pipelines.base import Batch, Data, TrainPipeline
from pipelines.common.errors import UserError
from pipelines.datasets import photographs
from pipelines.order import SampleOrder
from tests.pipelines.pictures import CLASSES, DAMAGE, damage, numbered_folder, settings
from tests.pipelines.streams import LOADERS, SEED, assert_same, endless, joined, request, whole

ROOT = Path(__file__).parents[3]
TRAIN, VAL = 60, 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return numbered_folder(tmp_path / "images", TRAIN, VAL)


def training_files(folder: Path) -> list[Path]:
    return sorted((folder / "train").glob("*/*"))


def numbers(images: torch.Tensor) -> list[int]:
    """Numbers of the images, read from their pixels."""
    red = images[:, 0, 8, 8] * photographs.STD[0] * 255 + photographs.MEAN[0] * 255
    return red.round().long().tolist()


def build(folder: Path, loader: str, rank: int = 0, workers: int = 1, **options: object) -> Data:
    return pipelines.build(settings(folder, loader=loader, **options), request(rank, workers))


def sample_to_damage(place: int = 30) -> int:
    """The one at a place of the first epoch's order: 30 is in the second of its batches of 24."""
    return int(SampleOrder(SEED, TRAIN, 24).permutation(0)[place])


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", DAMAGE)
def test_the_first_bad_file_is_named(folder: Path, kind: str, loader: str) -> None:
    sample = sample_to_damage()
    file = training_files(folder)[sample]
    damage(file, kind)
    steps = build(folder, loader).train.epoch()
    next(steps)
    reason = {
        "truncated": r"cannot be decoded: it is truncated or damaged \(OSError: .*\)",
        "junk": r"is no image of a known format, or its header is damaged",
        "empty": r"is empty",
        "absent": r"cannot be read \(No such file or directory\)",
        "folder": r"cannot be read \(is a folder\)",
    }[kind]
    match = (
        rf"^data\.path: .*images: train/{file.parent.name}/{file.name} \(class {file.parent.name}, "
        rf"sample {sample} of 60\), epoch 0, batch 1: {reason}; "
        r".*pipelines scan.*data\.exclude.*data\.on_bad_file=skip$"
    )
    with pytest.raises(UserError, match=match):
        next(steps)


def damaged_set(folder: Path) -> dict[int, str]:
    """A tenth of the training files, of every kind."""
    bad = [sample_to_damage(place) for place in (0, 25, 30, 31, 47, 59)]
    for i, sample in enumerate(bad):
        damage(training_files(folder)[sample], DAMAGE[i % len(DAMAGE)])
    return {sample: training_files(folder)[sample].name for sample in bad}


def steps_of(data: Data, count: int) -> list[Batch]:
    steps = endless(data.train)
    return [next(steps) for _ in range(count)]


@pytest.mark.parametrize("loader", LOADERS)
def test_others_of_the_same_class_come_instead(folder: Path, loader: str, caplog: pytest.LogCaptureFixture) -> None:
    plain = steps_of(build(folder, loader, augment=False), 4)
    bad = damaged_set(folder)
    data = build(folder, loader, augment=False, on_bad_file="skip")
    with caplog.at_level(logging.ERROR, logger="pipelines.loaders.bad_files"):
        found = steps_of(data, 4)
    order = SampleOrder(SEED, TRAIN, 24)
    replaced = 0
    for step, (batch, before) in enumerate(zip(found, plain, strict=True)):
        assert torch.equal(batch[1], before[1]), "labels are as they were"
        for place, sample in enumerate(order.batch(*divmod(step, 2)).tolist()):
            if sample in bad:
                replaced += 1
                number = numbers(batch[0])[place]
                assert f"{number:04}.png" not in bad.values()
                assert CLASSES[number % 3] == CLASSES[int(batch[1][place])]
            else:
                assert torch.equal(batch[0][place], before[0][place]), "all else is untouched"
    assert replaced >= 5
    seen = {int(i) for step in range(4) for i in order.batch(*divmod(step, 2))}
    assert set(data.train.bad_samples) == set(bad) & seen
    assert len(caplog.records) == len(data.train.bad_samples), "each is named once"
    assert "skipping train/" in caplog.text and "batch 0: " in caplog.text


@pytest.mark.parametrize("loader", ["dali", pytest.param("torch", marks=pytest.mark.slow)])
def test_workers_and_resume_take_the_same_instead(folder: Path, loader: str) -> None:
    damaged_set(folder)
    expected = steps_of(build(folder, loader, on_bad_file="skip"), 6)

    def ranks_from(state: dict[str, object] | None, workers: int) -> list[Iterator[Batch]]:
        pipelines_ = [build(folder, loader, rank, workers, on_bad_file="skip").train for rank in range(workers)]
        for pipeline in pipelines_:
            if state is not None:
                pipeline.load_state_dict(state)
        return [endless(pipeline) for pipeline in pipelines_]

    for workers in (2, 3) if loader == "dali" else (3,):
        ranks = ranks_from(None, workers)
        assert_same([joined(next(rank) for rank in ranks) for _ in range(6)], expected)
    first = build(folder, loader, on_bad_file="skip").train
    steps = endless(first)
    for _ in range(3):
        next(steps)
    for knows in (True, False):
        second = build(folder, loader, on_bad_file="skip").train
        second.load_state_dict(first.state_dict())
        if knows:
            second.avoid(first.bad_samples)
        rest = endless(second)
        assert_same([next(rest) for _ in range(3)], expected[3:])


def test_a_known_bad_file_is_never_opened_again(folder: Path) -> None:
    sample = sample_to_damage()
    damage(training_files(folder)[sample], "junk")
    data = build(folder, "dali")  # on_bad_file: stop
    data.train.avoid({sample: "told"})
    assert len(list(data.train.epoch())) == 2
    assert data.train.bad_samples == {sample: "told"}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_class_with_no_file_left_is_an_error(folder: Path, loader: str) -> None:
    for file in training_files(folder):
        if file.parent.name == "bee":
            damage(file, "junk")
    with pytest.raises(UserError, match=r"class bee has no good sample left; repair or remove the class"):
        steps_of(build(folder, loader, on_bad_file="skip"), 2)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("workers", [1, 3])
def test_evaluation_leaves_bad_files_out(folder: Path, loader: str, workers: int) -> None:
    """Never counted, never replaced, in each of two passes; a batch that would be empty is left out as well."""
    files = sorted((folder / "val").glob("*/*"))
    bad = [0, 7, *range(16, 20), 29]
    for i in bad:
        damage(files[i], DAMAGE[i % len(DAMAGE)])
    expected = [int(file.stem) for i, file in enumerate(files) if i not in bad]
    ranks = []
    for rank in range(workers):
        asked = request(rank, workers, evaluation_batch=4)
        ranks.append(pipelines.build(settings(folder, loader=loader, on_bad_file="skip"), asked).test)
    for _ in range(2):
        found = [number for rank in ranks for images, _ in rank.batches() for number in numbers(images)]
        assert found == expected
        assert sum(rank.left_out for rank in ranks) == len(bad)
        assert all(rank.samples == VAL for rank in ranks)


@pytest.mark.parametrize("loader", LOADERS)
def test_evaluation_stops_at_a_bad_file(folder: Path, loader: str) -> None:
    damage(folder / "val" / "bee" / "0004.png", "junk")
    match = r"val/bee/0004\.png \(class bee, sample 11 of 30\), evaluation: is no image"
    with pytest.raises(UserError, match=match):
        whole(build(folder, loader).test)


def test_an_error_that_is_no_files_fault_is_not_taken_for_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.loaders.dali_loader import DaliFeed

    data = build(folder, "dali", on_bad_file="skip")
    steps = data.train.epoch()
    next(steps)

    def run(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    feed = data.train._feed  # type: ignore[attr-defined]
    assert isinstance(feed, DaliFeed)
    monkeypatch.setattr(feed._pipeline, "run", run)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(steps)


class TestExcluded:
    def test_what_is_listed_is_left_out(self, folder: Path, tmp_path: Path) -> None:
        bad = damaged_set(folder)
        damage(folder / "val" / "bee" / "0004.png", "junk")
        names = [str(training_files(folder)[i].relative_to(folder)) for i in bad] + ["val/bee/0004.png"]
        (tmp_path / "list").write_text("# bad\n\n" + "\n".join(names) + "\n")
        data = build(folder, "dali", exclude=str(tmp_path / "list"))
        assert data.train.state_dict()["samples"] == TRAIN - len(bad)
        assert data.test.samples == VAL - 1
        assert len(whole(data.test)[1]) == VAL - 1
        for _ in range(2):
            assert len(list(data.train.epoch())) == (TRAIN - len(bad)) // 24

    def test_names_of_other_data_are_refused(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "list").write_text("train/ape/none.png\n")
        with pytest.raises(UserError, match=r"data\.exclude: .*list names 1 files .* train/ape/none\.png; scan"):
            build(folder, "dali", exclude=str(tmp_path / "list"))

    def test_an_emptied_class_is_refused(self, folder: Path, tmp_path: Path) -> None:
        names = [f"train/bee/{file.name}" for file in (folder / "train" / "bee").iterdir()]
        (tmp_path / "list").write_text("\n".join(names))
        with pytest.raises(UserError, match=r"data\.exclude: .*list leaves no image of train/bee; remove the class"):
            build(folder, "dali", exclude=str(tmp_path / "list"))

    def test_an_absent_list_is_refused_before_anything_starts(self, folder: Path) -> None:
        with pytest.raises(UserError, match=r"data\.exclude: nowhere cannot be read \(No such file"):
            pipelines.check(settings(folder, exclude="nowhere"))


def test_a_changed_folder_is_refused(folder: Path) -> None:
    """Another name is enough: with as many files the position would mean other samples without a word."""
    state = build(folder, "dali").train.state_dict()
    (folder / "train" / "ape" / "0000.png").rename(folder / "train" / "ape" / "0001.png")
    with pytest.raises(UserError, match=r"the data have changed .* \(60 training samples then, 60 now"):
        build(folder, "dali").train.load_state_dict(state)


def test_a_folder_that_moved_is_the_same(folder: Path) -> None:
    state = build(folder, "dali").train.state_dict()
    moved = folder.rename(folder.with_name("moved"))
    build(moved, "dali").train.load_state_dict(state)


def test_old_checkpoints_know_of_no_listing(folder: Path) -> None:
    pipeline: TrainPipeline = build(folder, "dali").train
    state = pipeline.state_dict()
    del state["listing"]
    pipeline.load_state_dict({**state, "batch": 1})
    assert len(list(pipeline.epoch())) == 1


def test_samples_of_the_epochs_are_each_seen_once_less_the_tail(folder: Path) -> None:
    """The real thing over files: 1 to 4 workers, three epochs, sizes that divide and that do not."""
    order = SampleOrder(SEED, TRAIN, 24)
    files = training_files(folder)
    for workers in (1, 2, 3, 4):
        ranks = [endless(build(folder, "dali", rank, workers).train) for rank in range(workers)]
        for epoch in range(3):
            seen = [number for _ in range(2) for number in numbers(joined(next(rank) for rank in ranks)[0])]
            expected = [int(files[i].stem) for b in range(2) for i in order.batch(epoch, b)]
            assert seen == expected
            assert len(set(seen)) == 48


def test_resume_on_other_numbers_of_workers_sees_the_rest(folder: Path) -> None:
    files = training_files(folder)
    first = [build(folder, "dali", rank, 2) for rank in range(2)]
    seen = [n for data in first for n in numbers(joined(next(data.train.epoch()))[0])]
    for workers in (1, 4):
        again = [build(folder, "dali", rank, workers) for rank in range(workers)]
        rest: list[int] = []
        for data in again:
            data.train.load_state_dict(first[0].train.state_dict())
            rest += [n for step in data.train.epoch() for n in numbers(joined(step)[0])]
        places = SampleOrder(SEED, TRAIN, 24).permutation(0)[:48]
        assert sorted(seen + rest) == sorted(int(files[i].stem) for i in places)
        assert np.intersect1d(seen, rest).size == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["junk", "empty", "truncated"])
def test_bad_files_in_large_batches(tmp_path: Path, kind: str) -> None:
    """DALI 2.4 ends the process where it decodes a large batch while the look at its headers fails."""
    script = """if True:
        import sys
        import pipelines
        from tests.pipelines.pictures import settings
        from tests.pipelines.streams import request, whole
        data = pipelines.build(settings(sys.argv[1], on_bad_file="skip"), request(evaluation_batch=128))
        print(len(whole(data.test)[1]), data.test.left_out)
    """
    folder = numbered_folder(tmp_path / "images", train=60, val=384)
    for file in sorted((folder / "val").glob("*/*"))[5::48]:
        damage(file, kind)
    done = subprocess.run([sys.executable, "-c", script, folder], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert done.stdout.split() == ["376", "8"]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_torch_loaders_processes_outlive_signals_but_not_the_trainer(folder: Path, sent: signal.Signals) -> None:
    """A signal to the whole group is the trainer's to answer; when that is killed nobody is left."""
    script = """if True:
        import signal, sys
        import pipelines
        from tests.pipelines.pictures import settings
        from tests.pipelines.streams import endless, request
        if __name__ == "__main__":
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: None)
            steps = endless(pipelines.build(settings(sys.argv[1], loader="torch", threads=2), request()).train)
            next(steps)
            print("ready", flush=True)
            for line in sys.stdin:
                for _ in range(20):
                    next(steps)
                print("went on", flush=True)
    """
    file = folder / "train_loop.py"
    file.write_text(textwrap.dedent(script.replace("if True:\n", "", 1)))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    trainer = subprocess.Popen(
        [sys.executable, file, folder], cwd=ROOT, env=environment, start_new_session=True, **pipes
    )
    try:
        assert trainer.stdin is not None and trainer.stdout is not None
        assert trainer.stdout.readline() == "ready\n"
        os.killpg(trainer.pid, sent)
        trainer.stdin.write("go on\n")
        trainer.stdin.flush()
        assert trainer.stdout.readline() == "went on\n"
        assert len(members(trainer.pid)) >= 3
        trainer.kill()
        trainer.wait()
        deadline = time.monotonic() + 60
        while members(trainer.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert members(trainer.pid) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(trainer.pid, signal.SIGKILL)


def members(group: int) -> list[int]:
    """The processes of a group that are not yet dead."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, _, its = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its) == group and state != "Z":
                found.append(int(entry.name))
    return found
