"""Photographs in parquet files: what the network gets is what it gets from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pipelines
from pipelines.base import Request, TrainPipeline
from pipelines.common.errors import UserError
from tests.pipelines.parquet_files import from_folder, settings, table, write
from tests.pipelines.pictures import CLASSES, damage, numbered_folder
from tests.pipelines.pictures import settings as folder_settings
from tests.pipelines.streams import (
    LOADERS,
    assert_known_beforehand,
    assert_workers_and_resume_change_nothing,
    request,
    whole,
)


def written(tmp_path: Path, damaged: str | None = None, **options: Any) -> tuple[Path, Path]:
    """A folder, and its images in three shards a part."""
    folder = numbered_folder(tmp_path / "folder", train=60, val=30)
    if damaged is not None:
        damage(folder / damaged, "junk")
    return folder, from_folder(folder, tmp_path / "parquet", **options)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"compression": "none", "use_dictionary": False}])
def test_the_images_are_those_of_the_folder(tmp_path: Path, loader: str, options: dict[str, Any]) -> None:
    folder, root = written(tmp_path, **options)
    pipelines.check(settings(root))
    expected = pipelines.build(folder_settings(folder, loader=loader), request(evaluate_train=True))
    data = pipelines.build(settings(root, loader=loader), request(evaluate_train=True))
    assert data.class_names == tuple(CLASSES)
    for mine, theirs in ((data.test, expected.test), (data.train_evaluation, expected.train_evaluation)):
        for pass_of in range(2):  # Of the second, images are read by their place.
            for found, wanted in zip(whole(mine), whole(theirs), strict=True):
                assert torch.equal(found, wanted), pass_of
    for found, wanted in zip(next(iter(data.train.epoch())), next(iter(expected.train.epoch())), strict=True):
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    data.close()
    expected.close()


@pytest.mark.parametrize("loader", LOADERS)
def test_workers_and_resume_change_nothing(tmp_path: Path, loader: str) -> None:
    _, root = written(tmp_path)

    def build(asked: Request) -> TrainPipeline:
        return pipelines.build(settings(root, loader=loader), asked).train

    assert_workers_and_resume_change_nothing(build)


def test_a_position_in_other_shards_is_refused(tmp_path: Path) -> None:
    _, root = written(tmp_path)
    state = pipelines.build(settings(root), request()).train.state_dict()
    write(root / "data/train-00002-of-00003.parquet", [(b"other", 2)] * 20)
    with pytest.raises(UserError, match="the data have changed since the checkpoint was made"):
        pipelines.build(settings(root), request()).train.load_state_dict(state)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_bad_sample_is_named_and_can_be_skipped(tmp_path: Path, loader: str) -> None:
    _, root = written(tmp_path, damaged="val/bee/0004.png")
    name = "data/validation-00001-of-00003.parquet/1"
    with pytest.raises(UserError, match=rf"data\.path: .*: {name} \(class bee, sample 11 of 30\), evaluation: is no"):
        whole(pipelines.build(settings(root, loader=loader), request()).test)
    test = pipelines.build(settings(root, loader=loader, on_bad_file="skip"), request()).test
    assert len(whole(test)[1]) == 29 and test is not None and test.left_out == 1
    (tmp_path / "list").write_text(f"{name}\n")
    test = pipelines.build(settings(root, loader=loader, exclude=str(tmp_path / "list")), request()).test
    assert test is not None and len(whole(test)[1]) == test.samples == 29


@pytest.mark.parametrize("loader", LOADERS)
def test_a_null_image_is_a_bad_sample(tmp_path: Path, loader: str) -> None:
    folder, root = written(tmp_path)
    content = next(folder.glob("val/*/*")).read_bytes()
    write(root / "data/validation-00000-of-00003.parquet", [(content, 0), (None, 0), (b"", 0)])
    with pytest.raises(UserError, match=r"of-00003\.parquet/1 .*: cannot be read \(row 1 of .* no image: it is null\)"):
        whole(pipelines.build(settings(root, loader=loader), request()).test)
    test = pipelines.build(settings(root, loader=loader, on_bad_file="skip"), request()).test
    assert test is not None and len(whole(test)[1]) == 21 and test.left_out == 2


def test_a_shard_cut_short_in_mid_run_is_named(tmp_path: Path) -> None:
    _, root = written(tmp_path)
    data = pipelines.build(settings(root), request())
    whole(data.test)
    for shard in root.glob("data/validation-*"):
        with shard.open("r+b") as file:
            file.truncate(100)
    with pytest.raises(UserError, match=r"data/validation-\d+-of-00003\.parquet/\d+ .*: cannot be read \("):
        # DALI had read up to three batches of the next passes before; a pass has two.
        _ = [whole(data.test) for _ in range(4)]


def test_the_order_of_training_is_known_beforehand(tmp_path: Path) -> None:
    _, root = written(tmp_path)
    assert_known_beforehand(settings(root), 60)


def test_classes_are_counted_in_names_or_labels(tmp_path: Path) -> None:
    _, root = written(tmp_path)
    assert settings(root, number_of_classes=None).resolved().classes == 3
    with pytest.raises(UserError, match=r"data\.number_of_classes is 5, .*-00000-of-00003.parquet names 3; set"):
        pipelines.check(settings(root, number_of_classes=5))
    for part in ("train", "test"):
        write(tmp_path / f"plain/{part}.parquet", table([(b"a", 0), (b"b", 3), (b"c", 1), (b"c", 2)], names=None))
    found = settings(tmp_path / "plain", number_of_classes=None).resolved()
    assert found.classes == 4
    pipelines.check(found)
    assert pipelines.build(found, request(batch=2)).class_names == ("0", "1", "2", "3")


def test_test_data_without_labels_are_none(tmp_path: Path) -> None:
    """ImageNet's are such."""
    _, root = written(tmp_path)
    write(root / "data/test-00000-of-00001.parquet", [(b"?", -1)] * 5)
    data = pipelines.build(settings(root), request())
    assert data.validation is None and data.test is not None and data.test.samples == 30
    with pytest.raises(UserError, match=r"data\.test_shards: data/test-00000-of-00001.parquet/0 in .* has label -1"):
        pipelines.build(settings(root, test_shards="data/test-*"), request())


def test_an_empty_first_shard_does_not_make_test_data_unlabelled(tmp_path: Path) -> None:
    _, root = written(tmp_path)
    write(root / "data/test-00000-of-00002.parquet", table([], names=list(CLASSES)))
    write(root / "data/test-00001-of-00002.parquet", table([(b"x", 1), (b"y", 2)], names=list(CLASSES)))
    data = pipelines.build(settings(root), request())
    assert data.test is not None and data.test.samples == 2
    assert data.validation is not None and data.validation.samples == 30


@pytest.mark.parametrize(
    ("places", "given", "test", "validation"),
    [
        (["data/train-0.parquet", "data/test-0.parquet"], {}, 3, None),
        (["train/0.parquet", "val/0.parquet", "test/0.parquet"], {}, 4, 3),
        (["plain_text/train-0.parquet", "plain_text/valid-0.parquet"], {}, 3, None),
        (["default/train/0.parquet", "default/validation/0.parquet", "default/test/0.parquet"], {}, 4, 3),
        (["train.parquet", "test.parquet"], {}, 3, None),
        (["train.parquet"], {"validation_samples": 2}, None, 2),
        (["a/x.parquet", "b/x.parquet"], {"train_shards": "a/*.parquet", "val_shards": "b/*.parquet"}, 3, None),
    ],
)
def test_shards_are_for_what_their_names_say(
    tmp_path: Path, places: list[str], given: dict[str, Any], test: int | None, validation: int | None
) -> None:
    for index, place in enumerate(places):
        rows = [(b"x", i % 2) for i in range(6 if index == 0 else 2 + index)]
        write(tmp_path / place, table(rows, names=["ape", "bee"]))
    asked = settings(tmp_path, number_of_classes=2, **given)
    pipelines.check(asked)
    data = pipelines.build(asked, request(batch=2))
    assert (data.test and data.test.samples) == test
    assert (data.validation and data.validation.samples) == validation
    data.close()


def test_absent_and_doubtful_shards_are_refused_before_anything_starts(tmp_path: Path) -> None:
    def refused(match: str, **options: object) -> None:
        with pytest.raises(UserError, match=match):
            pipelines.check(settings(root, **options))

    root = tmp_path
    refused(r"data\.train_shards: 'data/train-\*\.parquet' matches no shard in .* such as 'data/train-\*\.parquet'")
    _, root = written(tmp_path)
    refused(r"data\.val_shards: 'x\*' matches no shard in", val_shards="x*")
    next(root.glob("data/train-00001*")).rename(tmp_path / "away")
    refused(
        r"data\.train_shards: .* has 2 shards of 3, without number 00001, by the name train-00000-of-00003\.parquet;"
    )
    pipelines.check(settings(root, train_shards="data/train-*"))
    write(root / "other/train-00000.parquet", [(b"x", 0)])
    refused(r"data\.path: .* has shards of train in data, other; give one of these folders as data\.path")
    for shard in root.glob("data/validation*"):
        shard.unlink()
    (root / "other/train-00000.parquet").unlink()
    refused("has nothing to evaluate on", train_shards="data/train-*")


@pytest.mark.parametrize(
    ("given", "settings_named"),
    [
        ({"train_shards": "data/*.parquet"}, "data.train_shards and data.val_shards"),
        ({"val_shards": "data/v*", "test_shards": "data/*on-00001*"}, "data.val_shards and data.test_shards"),
        ({"train_shards": "data/t*", "test_shards": "data/t*"}, "data.train_shards and data.test_shards"),
    ],
)
def test_no_shard_is_in_two_parts(tmp_path: Path, given: dict[str, str], settings_named: str) -> None:
    _, root = written(tmp_path)
    for use in (pipelines.check, lambda found: pipelines.build(found, request())):
        with pytest.raises(UserError, match=f"parquet is of both {settings_named}; what is trained on, or chosen by"):
            use(settings(root, **given))


def test_parts_name_the_same_classes(tmp_path: Path) -> None:
    """Labels are numbers: with the names in another order each would be another class."""
    _, root = written(tmp_path)
    for names, told in (
        ([*reversed(CLASSES)], f"label 0 is {CLASSES[-1]} there, and {CLASSES[0]} where"),
        (CLASSES[:2], f"label 2 is nothing there, and {CLASSES[2]} where"),
    ):
        write(root / "other/a.parquet", table([(b"x", 0)], names))
        with pytest.raises(UserError, match=rf"data\.val_shards: .*a\.parquet names other classes than .*: {told}"):
            pipelines.check(settings(root, val_shards="other/*"))
    write(root / "other/a.parquet", table([(b"x", 0)], None))
    pipelines.check(settings(root, val_shards="other/*"))


def test_names_to_skip_are_of_shards_that_are_there(tmp_path: Path) -> None:
    _, root = written(tmp_path)
    wanted = tmp_path / "list"
    for name in ("train/ape/0000.png", "data/train-00009-of-00003.parquet/1"):
        wanted.write_text(f"data/train-00000-of-00003.parquet/1\n{name}\n")
        with pytest.raises(UserError, match=rf"data\.exclude: .*list names 1 files that .*, such as {name}; scan"):
            pipelines.build(settings(root, exclude=str(wanted)), request())


def test_given_patterns_are_not_guessed(tmp_path: Path) -> None:
    """The patterns that the message asks for end the doubt."""
    _, root = written(tmp_path)
    for part in ("train", "validation"):
        write(root / f"other/{part}-00000.parquet", [(b"x", 0)])
    given = {"train_shards": "data/train-*", "val_shards": "data/validation-*"}
    for part, other in (("train", "val_shards"), ("validation", "train_shards")):
        with pytest.raises(UserError, match=f"has shards of {part} in data, other; give one of these folders"):
            pipelines.check(settings(root, **{other: given[other]}))
    pipelines.check(settings(root, **given))


def test_test_images_without_a_column_of_labels_are_none(tmp_path: Path) -> None:
    """They are left out as those with labels of -1 are. What another number beside an image is, nobody can tell."""
    _, root = written(tmp_path)
    content = table([(b"x", 0)], None, label="labels")
    write(root / "data/test-0.parquet", content.drop_columns("labels"))
    data = pipelines.build(settings(root), request())
    assert data.test is not None and data.test.samples == 30 and data.validation is None
    with pytest.raises(UserError, match=r"data\.test_shards: .*test-0\.parquet .* 'label' of whole numbers must hold"):
        pipelines.check(settings(root, test_shards="data/test-*"))
    write(root / "data/test-0.parquet", content)
    match = r"data\.path: .*test-0\.parquet has no column 'label', .*, and labels might; name it so, or leave this part"
    with pytest.raises(UserError, match=match):
        pipelines.check(settings(root))
    pipelines.check(settings(root, val_shards="data/validation-*"))


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["00000-of-00005-1359597a978bc4fa"], "has 1 shards of 5, without number 00001, 00002, 00003, 00004, by"),
        (["00000-of-00002-aa", "00000-of-00002-bb"], "has 2 shards of 2, without number 00001, by the name"),
        (["00000-of-00001-aa", "00000-of-00001-bb"], "has 2 shards of 1, by the name"),
        (["00001-of-00003", "00002-of-00003", "00003-of-00003"], "has 3 shards of 3, without number 00000, by the"),
    ],
)
def test_an_incomplete_download_is_refused(tmp_path: Path, names: list[str], match: str) -> None:
    _, root = written(tmp_path)
    content = next(root.glob("data/train-*")).read_bytes()
    for shard in list(root.glob("data/train-*")):
        shard.unlink()
    for name in names:
        (root / f"data/train-{name}.parquet").write_bytes(content)
    with pytest.raises(UserError, match=match):
        pipelines.check(settings(root))


def test_names_of_older_uploads_are_complete(tmp_path: Path) -> None:
    _, root = written(tmp_path)
    for shard in list(root.glob("data/*")):
        shard.rename(shard.with_name(f"{shard.stem}-1359597a978bc4fa.parquet"))
    data = pipelines.build(settings(root), request())
    assert data.sizes["train"].samples == 60 and data.test is not None and data.test.samples == 30
