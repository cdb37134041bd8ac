"""ImageNet from its archives: the layout, the counts, and that a stopped command goes on."""

from __future__ import annotations

import fcntl
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import pipelines
from pipelines.common.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED, UserError
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.sources.parts import UNFINISHED
from pipelines.tools.prepare import imagenet, room
from pipelines.tools.prepare.imagenet import OFFICIAL
from pipelines.tools.prepare.imagenet_plan import Counts
from tests import forks  # noqa: F401 - its server starts processes in milliseconds
from tests.pipelines.streams import request, whole
from tests.pipelines.tools.prepare import archives as made
from tests.pipelines.tools.prepare.archives import DEVKIT, LABELS, TRAIN, VAL, WNIDS, done, expected, run, tree

SMALL = Counts(classes=3, train=12, val=6)
ALLOW = "copy it anew, or give --allow-fewer"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made.write(tmp_path / "archives")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "made"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small archives are complete."""
    monkeypatch.setattr(imagenet, "OFFICIAL", SMALL)


def words(folder: Path, out: Path) -> list[object]:
    return ["imagenet", "--archives", folder, "--out", out]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("workers", [1, 8])
def test_layout(folder: Path, out: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(folder)
    done(*words(folder, out), "--workers", workers)
    assert tree(out) == expected()
    assert tree(folder) == before
    assert sorted(path.name for path in out.iterdir()) == ["train", "val"]
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == f"{folder}: reading the names in the archives"
    assert second.startswith(f"{out}: takes 1 MB on its disk, where ")
    assert last == (
        f"{out}: 3 classes, 12 images in train, 6 in val; train on it with data.name=imagenet data.path={out}"
    )


@pytest.mark.usefixtures("small")
def test_training_accepts_it(folder: Path, out: Path) -> None:
    done(*words(folder, out))
    asked = ImagenetSettings.model_validate(
        {"name": "imagenet", "path": str(out), "loader": "torch", "threads": 1, "image_size": 16}
    ).resolved()
    pipelines.check(asked)
    data = pipelines.build(asked, request(batch=4))
    assert data.train.epochs.steps(0) == 3
    assert sum(len(labels) for step in data.train.epoch() for _, labels in step) == 12
    images, labels = whole(data.test)
    assert images.shape == (6, 3, 16, 16)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_official_counts_are_the_default(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (OFFICIAL.classes, OFFICIAL.train, OFFICIAL.val) == (1000, 1_281_167, 50_000)
    assert run(*words(folder, out)) == EXIT_BAD_INPUT
    assert capsys.readouterr().err == f"error: {folder / TRAIN} has 3 classes, ImageNet 1,000; {ALLOW}\n"
    assert not out.exists()


def test_the_official_number_of_validation_images(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(imagenet, "OFFICIAL", Counts(3, OFFICIAL.train, OFFICIAL.val))
    assert run(*words(folder, out)) == EXIT_BAD_INPUT
    line = f"error: {folder / DEVKIT} has labels for 6 images, not 50,000; {ALLOW}\n"
    assert capsys.readouterr().err == line
    assert not out.exists()


def test_the_official_number_of_training_images(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known when all is read: what is there then is marked, so that nobody trains on it unaware."""
    monkeypatch.setattr(imagenet, "OFFICIAL", Counts(3, OFFICIAL.train, 6))
    assert run(*words(folder, out)) == EXIT_BAD_INPUT
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {folder / TRAIN} has 12 images, ImageNet 1,281,167; {ALLOW}"
    )
    assert (out / UNFINISHED).is_dir()
    with pytest.raises(UserError, match="is prepared in part; give the same command again"):
        pipelines.check(ImagenetSettings(name="imagenet", path=str(out), loader="torch", number_of_classes=3))


@pytest.mark.usefixtures("small")
def test_a_class_with_fewer_images_is_named(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = made.training()
    images[WNIDS[1]].popitem()
    folder = made.write(tmp_path / "archives", train=made.training_tar(images))
    assert run(*words(folder, out)) == EXIT_BAD_INPUT
    lacking = f"{folder / TRAIN} has 11 images, ImageNet 12, fewer than the devkit says of {WNIDS[1]} (3 of 4)"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {lacking}; {ALLOW}"
    done(*words(folder, out), "--allow-fewer")
    assert f"warning: {lacking}\n" in capsys.readouterr().err
    assert len(tree(out)) == 17
    assert not (out / UNFINISHED).exists()


def test_more_images_than_imagenet_are_refused(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(imagenet, "OFFICIAL", Counts(3, 11, 6))
    assert run(*words(folder, out), "--allow-fewer") == EXIT_BAD_INPUT
    assert "has 12 images, more than ImageNet's 11" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "named"),
    [([TRAIN], TRAIN), ([VAL, DEVKIT], f"{VAL}, {DEVKIT}"), ([TRAIN, VAL, DEVKIT], f"{TRAIN}, {VAL}, {DEVKIT}")],
)
def test_missing_archives_are_named(
    folder: Path, out: Path, missing: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in missing:
        (folder / name).unlink()
    assert run(*words(folder, out), "--allow-fewer") == EXIT_BAD_INPUT
    assert capsys.readouterr().err == f"error: --archives: {folder} lacks {named}; put it there, under this name\n"
    assert not out.exists()


def test_a_missing_folder_is_named(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words(tmp_path / "no", out)) == EXIT_BAD_INPUT
    assert "error: --archives is " in (said := capsys.readouterr().err)
    assert "no, which is no folder; give the folder that holds the archives" in said


@pytest.mark.usefixtures("small")
def test_missing_validation_images_are_named(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = made.validation()
    for number in (2, 5):
        del images[f"ILSVRC2012_val_{number:08}.JPEG"]
    folder = made.write(tmp_path / "archives", val=made.tar(images.items()))
    lacking = f"{folder / VAL} lacks 2 images: ILSVRC2012_val_00000002.JPEG, ILSVRC2012_val_00000005.JPEG"
    assert run(*words(folder, out)) == EXIT_BAD_INPUT
    assert capsys.readouterr().err == f"error: {lacking}; {ALLOW}\n"
    assert not out.exists()
    done(*words(folder, out), "--allow-fewer")
    assert f"warning: {lacking}\n" in capsys.readouterr().err
    assert len(tree(out / "val")) == 4  # Of n02000002, both are gone: an empty folder would be refused.
    assert not (out / "val" / WNIDS[2]).exists()
    pipelines.check(ImagenetSettings(name="imagenet", path=str(out), loader="torch").resolved())


@pytest.mark.usefixtures("small")
def test_a_missing_class(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = made.training()
    del images[WNIDS[0]]
    folder = made.write(tmp_path / "archives", train=made.training_tar(images))
    assert run(*words(folder, out)) == EXIT_BAD_INPUT
    assert capsys.readouterr().err.splitlines() == [
        f"error: {folder / TRAIN} has 2 classes, ImageNet 3; {ALLOW}",
        f"error: {folder / TRAIN} lacks 1 classes: {WNIDS[0]}; {ALLOW}",
    ]
    done(*words(folder, out), "--allow-fewer")
    assert tree(out) == {path: content for path, content in expected().items() if WNIDS[0] not in path}


def test_some_classes(
    folder: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then the number of validation labels is still that of ImageNet, and all images of the classes must be there."""
    monkeypatch.setattr(imagenet, "OFFICIAL", Counts(1000, OFFICIAL.train, 6))
    chosen = tmp_path / "classes.txt"
    chosen.write_text(f"# mine\n{WNIDS[2]} with words\n\n{WNIDS[0]}\n")
    done(*words(folder, out), "--classes", chosen)
    assert tree(out) == {path: content for path, content in expected().items() if WNIDS[1] not in path}
    assert "2 classes, 8 images in train, 4 in val;" in capsys.readouterr().out
    done(*words(folder, out), "--allow-fewer")
    assert tree(out) == expected()
    assert run(*words(folder, out), "--classes", chosen) == EXIT_BAD_INPUT
    assert f"{out / 'train'} has 1 class folders of other data, such as {WNIDS[1]}" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_some_classes_with_fewer_images(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The devkit tells how many images each class has, so that a list of classes hides none that is missing."""
    images = made.training()
    images[WNIDS[1]].popitem()
    folder = made.write(tmp_path / "archives", train=made.training_tar(images))
    chosen = tmp_path / "classes.txt"
    chosen.write_text(f"{WNIDS[1]}\n{WNIDS[2]}\n")
    assert run(*words(folder, out), "--classes", chosen) == EXIT_BAD_INPUT
    lacking = f"{folder / TRAIN} has 7 images of these classes, fewer than the devkit says of {WNIDS[1]} (3 of 4)"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {lacking}; {ALLOW}"
    assert (out / UNFINISHED).is_dir()
    done(*words(folder, out), "--classes", chosen, "--allow-fewer")
    assert f"warning: {lacking}\n" in capsys.readouterr().err
    chosen.write_text(f"{WNIDS[0]}\n{WNIDS[2]}\n")
    done(*words(folder, tmp_path / "whole"), "--classes", chosen)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no class"),
        ("n01000001\nn99999999\n", "names n99999999, which is no class of the devkit"),
        ("../../etc\n", "names ../../etc, which is no class of the devkit"),
    ],
)
def test_a_list_of_other_classes(
    folder: Path, out: Path, tmp_path: Path, text: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes.txt").write_text(text)
    assert run(*words(folder, out), "--classes", tmp_path / "classes.txt") == EXIT_BAD_INPUT
    assert capsys.readouterr().err == (
        f"error: --classes: {tmp_path / 'classes.txt'} {reason}; write a WNID a line, such as n01000001\n"
    )


@pytest.mark.usefixtures("small")
def test_what_is_done_is_not_done_again(folder: Path, out: Path) -> None:
    done(*words(folder, out))
    files = {path: out / path for path in expected()}
    before = {path: file.stat().st_ino for path, file in files.items()}
    short, gone = min(files), max(files)
    files[short].write_bytes(files[short].read_bytes()[:-1])
    files[gone].unlink()
    done(*words(folder, out))
    assert tree(out) == expected()
    after = {path: file.stat().st_ino for path, file in files.items()}
    assert {path for path in files if before[path] != after[path]} - {gone} == {short}


@pytest.mark.usefixtures("small")
def test_images_of_others_are_refused(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "train" / WNIDS[0]).mkdir(parents=True)
    (out / "train" / WNIDS[0] / "mine.jpg").touch()
    assert run(*words(folder, out)) == EXIT_BAD_INPUT
    assert f"has more images than the archive lists: {WNIDS[0]} (5 of 4); remove those" in capsys.readouterr().err
    (out / "val" / "ape").mkdir()
    assert run(*words(folder, out)) == EXIT_BAD_INPUT
    assert "has 1 class folders of other data, such as ape" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("link", ["train", "val", f"train/{WNIDS[0]}", UNFINISHED])
def test_links_lead_nowhere(
    folder: Path, out: Path, tmp_path: Path, link: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (outside := tmp_path / "outside").mkdir()
    (out / link).parent.mkdir(parents=True)
    (out / link).symlink_to(outside)
    assert run(*words(folder, out)) == EXIT_BAD_INPUT
    line = f"{out / link} is a link or a file, where a folder is to be filled; remove it, or give another --out"
    assert capsys.readouterr().err == f"error: {line}\n"
    assert not list(outside.iterdir())


@pytest.mark.usefixtures("small")
def test_a_link_to_a_file_is_replaced(folder: Path, out: Path, tmp_path: Path) -> None:
    path = min(expected())
    (outside := tmp_path / "outside").write_bytes(expected()[path])
    (out / path).parent.mkdir(parents=True)
    (out / path).symlink_to(outside)
    outside.write_bytes(expected()[path][:-1] + b"x")
    done(*words(folder, out))
    assert not (out / path).is_symlink()
    assert tree(out) == expected()


@pytest.mark.usefixtures("small")
def test_what_cannot_be_written_is_named(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / (path := min(expected()))).mkdir(parents=True)
    assert run(*words(folder, out)) == EXIT_BAD_INPUT
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {out / path} cannot be written (Is a directory); make room for it, and give the command again"
    )


@pytest.mark.usefixtures("small")
def test_a_disk_without_room(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: os_usage(free=20_000))
    assert run(*words(folder, out)) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert said == (f"error: --out is {out}, whose disk has 1 MB free; 1 MB are needed: make room, or give another\n")
    assert not out.exists()


@pytest.mark.usefixtures("small")
def test_what_is_there_needs_no_room(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done(*words(folder, out))
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: os_usage(free=30_000))
    done(*words(folder, out))


@pytest.mark.usefixtures("small")
def test_the_archives_may_lie_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no part of what is done: of 20 KB free, none are used yet."""
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: os_usage(free=20_000))
    assert run(*words(folder, folder)) == EXIT_BAD_INPUT
    monkeypatch.undo()
    monkeypatch.setattr(imagenet, "OFFICIAL", SMALL)
    archives = tree(folder)
    done(*words(folder, folder))
    assert tree(folder) == {**archives, **expected()}


def os_usage(free: int) -> SimpleNamespace:
    return SimpleNamespace(total=10**12, used=10**12 - free, free=free)


@pytest.mark.usefixtures("small")
def test_one_process_at_a_time(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / UNFINISHED).mkdir(parents=True)
    with (out / UNFINISHED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (out / UNFINISHED / "draft").touch()
        assert run(*words(folder, out)) == EXIT_BAD_INPUT
        assert "which another process fills now; wait for it, or give another" in capsys.readouterr().err
        assert (out / UNFINISHED / "draft").exists()
    done(*words(folder, out))
    assert tree(out) == expected()


IMAGES, SIZE = 150, 60_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives that take a while, of 900 images that begin as JPEG files do."""
    noise = random.Random(5)
    content = {
        wnid: {f"{wnid}_{i}.JPEG": b"\xff\xd8\xff" + noise.randbytes(SIZE + i) for i in range(2 * IMAGES)}
        for wnid in WNIDS
    }
    return made.write(tmp_path_factory.mktemp("large") / "archives", train=made.training_tar(content))


def test_a_disk_that_takes_no_more(large: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files stands for a full disk: the write of an image fails halfway."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE - 1000, before[1]))
    try:
        assert run(*words(large, out), "--allow-fewer") == EXIT_BAD_INPUT
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    rule = "cannot be written (File too large); make room for it, and give the command again"
    assert re.fullmatch(rf"error: {out}/train/\S+\.JPEG {re.escape(rule)}", capsys.readouterr().err.splitlines()[-1])
    assert not list((out / "train").glob("*/*"))


def images_in(out: Path) -> int:
    return sum(len(os.listdir(out / "train" / wnid)) for wnid in WNIDS if (out / "train" / wnid).exists())


def whole_images(out: Path, archived: dict[str, int]) -> int:
    """Count the images that are there, and require that each is whole."""
    there = {path.name: path.stat().st_size for path in out.glob("*/*/*.JPEG")}
    assert there.items() <= archived.items()
    return len(there)


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGTERM, signal.SIGINT))],
)
def test_a_stopped_command_goes_on(large: Path, out: Path, number: signal.Signals) -> None:
    reference = out.with_name("reference")
    done(*words(large, reference), "--allow-fewer")
    archived = {path.name: path.stat().st_size for path in reference.glob("*/*/*.JPEG")}
    chance = random.Random(int(number))
    ended, counts = [], [0]
    while ended[-1:] != [EXIT_DONE]:
        stop_at = counts[-1] + chance.randrange(100, 500)
        command = [sys.executable, "-m", "pipelines", "prepare", *words(large, out), "--allow-fewer", "--workers", "2"]
        with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while process.poll() is None and images_in(out) < stop_at:
                time.sleep(0.002)
            process.send_signal(number)
            _, said = process.communicate()
        ended.append(process.returncode)
        counts.append(whole_images(out, archived))
        assert (out / UNFINISHED).exists() == (process.returncode != EXIT_DONE)
        if process.returncode == EXIT_INTERRUPTED:
            assert said.decode().splitlines()[-1] == "stopped; the same command goes on from here"
    assert ended[0] == (-signal.SIGKILL if number == signal.SIGKILL else EXIT_INTERRUPTED)
    assert 0 < counts[1] < len(archived)
    assert tree(out) == tree(reference)
    assert sum(len(files) for _, _, files in os.walk(out)) == len(archived)
    assert len(LABELS) + 6 * IMAGES == len(archived)
