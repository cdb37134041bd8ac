"""Photographs in shards: what the network gets is what it gets from a folder."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch

import pipelines
from pipelines.base import Request, TrainPipeline
from pipelines.common.errors import UserError
from pipelines.datasets.webdataset import WebdatasetSettings
from pipelines.tools import shards as shard_tools
from tests.pipelines.pictures import CLASSES, damage, numbered_folder
from tests.pipelines.pictures import settings as folder_settings
from tests.pipelines.streams import (
    LOADERS,
    assert_known_beforehand,
    assert_workers_and_resume_change_nothing,
    request,
    whole,
)


def settings(root: Path, **options: object) -> WebdatasetSettings:
    small = {"image_size": 16, "evaluation_resize": 16, "number_of_classes": 3, "threads": 1}
    return WebdatasetSettings.model_validate({"name": "webdataset", "path": str(root), **small, **options})


def written(tmp_path: Path, damaged: str | None = None) -> tuple[Path, Path]:
    """A folder, and its shards of 10 samples."""
    folder = numbered_folder(tmp_path / "folder", train=60, val=30)
    if damaged is not None:
        damage(folder / damaged, "junk")
    shard_tools.write(folder, tmp_path / "shards", 10)
    return folder, tmp_path / "shards"


@pytest.mark.parametrize("loader", LOADERS)
def test_the_images_are_those_of_the_folder(tmp_path: Path, loader: str) -> None:
    folder, shards = written(tmp_path)
    pipelines.check(settings(shards))
    from_folder = pipelines.build(folder_settings(folder, loader=loader), request(evaluate_train=True))
    data = pipelines.build(settings(shards, loader=loader), request(evaluate_train=True))
    assert data.class_names == tuple(CLASSES)
    for mine, theirs in zip(whole(data.test), whole(from_folder.test), strict=True):
        assert torch.equal(mine, theirs)
    mine, theirs = (
        {(image.numpy().tobytes(), int(label)) for image, label in zip(*whole(of.train_evaluation), strict=True)}
        for of in (data, from_folder)
    )
    assert mine == theirs and len(mine) == 60


def test_workers_and_resume_change_nothing(tmp_path: Path) -> None:
    _, shards = written(tmp_path)

    def build(asked: Request) -> TrainPipeline:
        return pipelines.build(settings(shards, validation_samples=6), asked).train

    assert_workers_and_resume_change_nothing(build)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_bad_sample_is_named_and_can_be_skipped(tmp_path: Path, loader: str) -> None:
    _, shards = written(tmp_path, damaged="val/bee/0004.png")
    match = r"data\.path: .*shards: val/00001\.tar/\d+\.png \(class bee, sample 11 of 30\), evaluation: is no image of"
    with pytest.raises(UserError, match=match) as caught:
        whole(pipelines.build(settings(shards, loader=loader), request()).test)
    test = pipelines.build(settings(shards, loader=loader, on_bad_file="skip"), request()).test
    assert len(whole(test)[1]) == 29 and test.left_out == 1
    name = str(caught.value).split("shards: ")[1].split(" (class")[0]
    (tmp_path / "list").write_text(f"{name}\n")
    test = pipelines.build(settings(shards, loader=loader, exclude=str(tmp_path / "list")), request()).test
    assert len(whole(test)[1]) == test.samples == 29


def test_a_shard_cut_short_in_mid_run_is_named(tmp_path: Path) -> None:
    _, shards = written(tmp_path)
    data = pipelines.build(settings(shards), request())
    for tar in (shards / "val").glob("*.tar"):
        tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(UserError, match=r"val/00000\.tar/\d+\.png .*: cannot be read"):
        whole(data.test)


def test_absent_shards_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train_shards: 'train/\*\.tar' matches no shard in"):
        pipelines.check(settings(tmp_path))
    _, shards = written(tmp_path)
    with pytest.raises(UserError, match=r"data\.val_shards: 'test/\*' matches no shard in"):
        pipelines.check(settings(shards, val_shards="test/*"))


def test_the_order_of_training_is_known_beforehand(tmp_path: Path) -> None:
    _, shards = written(tmp_path)
    assert_known_beforehand(settings(shards), 60)
    next(shards.glob("val/*.tar")).write_bytes(b"no tar" * 1000)
    for path in shards.glob("val/*.index"):
        path.unlink()
    with pytest.raises(UserError, match=r"data\.val_shards: .* is no tar"):
        pipelines.position_of(settings(shards), request())


@pytest.mark.parametrize(
    ("given", "settings_named"),
    [
        ({"train_shards": "*/*.tar"}, "data.train_shards and data.val_shards"),
        ({"test_shards": "train/*.tar"}, "data.train_shards and data.test_shards"),
        ({"val_shards": "v*/*.tar", "test_shards": "val/*0.tar"}, "data.val_shards and data.test_shards"),
    ],
)
def test_no_shard_is_in_two_parts(tmp_path: Path, given: dict[str, str], settings_named: str) -> None:
    _, shards = written(tmp_path)
    for use in (pipelines.check, lambda found: pipelines.build(found, request())):
        with pytest.raises(UserError, match=f"00000.tar is of both {settings_named}; what is trained on, or chosen"):
            use(settings(shards, **given))
    (shards / "other").symlink_to(shards / "val")
    with pytest.raises(UserError, match=r"is of both data\.val_shards and data\.test_shards"):
        pipelines.check(settings(shards, val_shards="val/*", test_shards="other/*"))


def test_names_to_skip_are_of_shards_that_are_there(tmp_path: Path) -> None:
    """A list of the folder, or of shards that were written anew, would leave out nothing."""
    _, shards = written(tmp_path)
    wanted = tmp_path / "list"
    for name in ("train/ape/0000.png", "train/00099.tar/0.png", "odd"):
        wanted.write_text(f"train/00000.tar/{_first(shards)}\n{name}\n")
        with pytest.raises(UserError, match=rf"data\.exclude: .*list names 1 files that .*, such as {name}; scan"):
            pipelines.build(settings(shards, exclude=str(wanted)), request())
    wanted.write_text("train/00001.tar/0.png\n")  # A shard that is there, and not used.
    data = pipelines.build(settings(shards, train_shards="train/0000[02345].tar", exclude=str(wanted)), request())
    assert data.sizes["train"].samples == 50


def _first(shards: Path) -> str:
    with tarfile.open(shards / "train/00000.tar") as tar:
        return next(name for name in tar.getnames() if name.endswith(".png"))
