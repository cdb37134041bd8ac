"""Photographs in shards: what the network gets is what it gets from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

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


@pytest.mark.parametrize("twice", [{"test_shards": "train/*.tar"}, {"val_shards": "a/*", "test_shards": "a/*"}])
def test_the_same_shards_are_not_two_splits(twice: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="name the same shards twice"):
        WebdatasetSettings.model_validate({"name": "webdataset", **twice})
