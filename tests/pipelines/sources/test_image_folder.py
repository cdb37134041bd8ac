"""Folders of images: the files that count as images, and the parts that folders are for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import pipelines
from pipelines import preview
from pipelines.common.errors import UserError
from pipelines.datasets.imagenet import ImagenetSettings
from pipelines.datasets.webdataset import WebdatasetSettings
from pipelines.sources.class_folders import class_folders, parts_of
from pipelines.sources.excluded import Excluded
from pipelines.sources.image_folder import list_images
from tests.pipelines.pictures import CLASSES, numbered_folder, picture, settings
from tests.pipelines.streams import LOADERS, request, whole


def files(root: Path, *names: str | bytes) -> Path:
    for name in names:
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def names(root: Path, classes: Sequence[str] = ("ape",), part: str = "train") -> list[str]:
    found = list_images(root, part, list(classes))
    return [found.name(i) for i in range(len(found.labels))]


def test_images_at_any_depth_are_of_their_class(tmp_path: Path) -> None:
    files(tmp_path, "train/ape/b.jpg", "train/ape/z/1.png", "train/ape/a/x/y/2.WEBP", "train/ape/a/3.jpg")
    files(tmp_path, "train/bee/deep/4.tif", "train/bee/notes.txt", "train/bee/deep/more.txt")
    found = list_images(tmp_path, "train", ["ape", "bee"])
    assert [found.name(i) for i in range(5)] == [
        "train/ape/a/3.jpg", "train/ape/a/x/y/2.WEBP", "train/ape/b.jpg", "train/ape/z/1.png", "train/bee/deep/4.tif",
    ]  # fmt: skip
    assert found.labels.tolist() == [0, 0, 0, 0, 1]
    assert found.path(4).tobytes() == os.fsencode(tmp_path / "train/bee/deep/4.tif")
    assert class_folders(tmp_path / "train") == {"ape": (4, 0), "bee": (1, 2)}


def test_what_systems_leave_is_neither_class_nor_image(tmp_path: Path) -> None:
    root = numbered_folder(tmp_path, train=9, val=3)
    before = settings(root)
    listing = pipelines.build(before, request(batch=3)).train.state_dict()["listing"]
    for system in ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "lost+found"):
        files(root, f"train/{system}/0.jpg", f"train/ape/{system}/0.jpg", f"val/{system}/bee/0.jpg")
    files(root, "train/ape/._0.jpg", "train/__MACOSX/ape/._0.jpg", "train/stray.jpg")
    pipelines.check(before)
    assert pipelines.build(before, request(batch=3)).train.state_dict()["listing"] == listing


def test_links_to_folders_are_followed_once_and_never_in_circles(tmp_path: Path) -> None:
    files(tmp_path, "elsewhere/1.jpg", "train/ape/0.jpg", "train/ape/inner/2.jpg", "train/bee/3.jpg")
    ape = tmp_path / "train/ape"
    (ape / "linked").symlink_to(tmp_path / "elsewhere")
    (ape / "again").symlink_to(tmp_path / "elsewhere")
    (ape / "self").symlink_to(ape)
    (ape / "up").symlink_to(tmp_path)
    (ape / "upper").symlink_to("..")
    (ape / "inner/round").symlink_to(ape)
    assert names(tmp_path) == ["train/ape/0.jpg", "train/ape/again/1.jpg", "train/ape/inner/2.jpg"]
    (tmp_path / "train/cat").symlink_to(ape)
    assert names(tmp_path, ["cat"])[0] == "train/cat/0.jpg"
    (ape / "itself").symlink_to("itself")
    with pytest.raises(UserError, match=r"train/ape/itself cannot be read \(Too many levels of symbolic links\)"):
        names(tmp_path)


def test_links_that_multiply_are_no_burden(tmp_path: Path) -> None:
    """Two links to the next folder in each of 30: 2^30 paths lead to one image."""
    for level in range(30):
        (tmp_path / f"{level}").mkdir()
        for link in "ab":
            (tmp_path / f"{level}" / link).symlink_to(tmp_path / f"{level + 1}")
    files(tmp_path, "30/1.jpg", "train/ape/0.jpg")
    (tmp_path / "train/ape/links").symlink_to(tmp_path / "0")
    assert names(tmp_path) == ["train/ape/0.jpg", f"train/ape/links/{'a/' * 30}1.jpg"]


def test_a_deep_tree(tmp_path: Path) -> None:
    deep = "d/" * 400
    here = os.getcwd()
    (tmp_path / "train/ape").mkdir(parents=True)
    try:
        os.chdir(tmp_path / "train/ape")
        for _ in range(400):
            os.mkdir("d")
            os.chdir("d")
        Path("1.jpg").touch()
    finally:
        os.chdir(here)
    assert names(tmp_path) == [f"train/ape/{deep}1.jpg"]


@pytest.mark.parametrize("name", [b"a\nb", b"a\rb", b"\x1b[31mred", b"caf\xe9", "a\u2028b".encode(), b"\x7f"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_class_names_that_no_line_can_hold_are_refused(tmp_path: Path, name: bytes, part: str) -> None:
    root = numbered_folder(tmp_path, train=9, val=3)
    files(root, b"train/" + name + b"/0.jpg", part.encode() + b"/" + name + b"/0.jpg")
    for act in (lambda: pipelines.check(settings(root, number_of_classes=4)), lambda: pipelines.check(settings(root))):
        with pytest.raises(UserError, match=r"data\.path: .*has the class .*; rename it$") as caught:
            act()
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("loader", LOADERS)
def test_odd_names_of_files_and_unusual_names_of_classes_work(tmp_path: Path, loader: str) -> None:
    root = numbered_folder(tmp_path, train=9, val=3)
    odd = [b"line\nend.png", b"\x1b[31mred.png", b"caf\xe9.png", b"tab\t.png", b" .png", b"% $HOME 'quote\".png"]
    shutil.move(root / "train/ape", root / "train/ \u00a0 'ä' 猿 %s\"$")
    shutil.move(root / "val/ape", root / "val/ \u00a0 'ä' 猿 %s\"$")
    for name in odd:
        picture(20, 24, seed=1).save(root / "train/bee" / os.fsdecode(name))
    data = pipelines.build(settings(root, loader=loader), request(batch=3, evaluate_train=True))
    images, labels = whole(data.train_evaluation)
    assert len(images) == 15 and data.class_names[0].startswith(" \u00a0 'ä'")
    picture_of_all = preview.picture(data, images, labels, most=15)
    preview.write_png(picture_of_all, tmp_path / "preview.png")
    data.close()


def parts(root: Path, *folders: str) -> tuple[str | None, str | None]:
    """Test and validation of a folder that has these, with one class each."""
    for folder in folders:
        files(root, f"{folder}/ape/0.jpg")
    found = parts_of(root)
    return found.test, found.validation


@pytest.mark.parametrize(
    ("folders", "test", "validation"),
    [
        (["val"], "val", None),
        (["valid"], "valid", None),
        (["validation"], "validation", None),
        (["test"], "test", None),
        (["val", "test"], "test", "val"),
        (["valid", "test"], "test", "valid"),
        ([], None, None),
    ],
)
def test_folders_are_known_by_their_names(
    tmp_path: Path, folders: list[str], test: str | None, validation: str | None
) -> None:
    assert parts(tmp_path, *folders) == (test, validation)


def test_test_images_of_no_known_class_are_no_test_data(tmp_path: Path) -> None:
    """Test images as ImageNet has them: one folder without classes."""
    files(tmp_path, "test/1.jpg")
    assert parts(tmp_path, "val") == ("val", None)


@pytest.mark.parametrize("folders", [["val", "valid"], ["valid", "validation", "test"]])
def test_two_folders_for_the_same_thing_are_refused(tmp_path: Path, folders: list[str]) -> None:
    with pytest.raises(UserError, match=r"has val.* and valid.*, which are names for the same thing; move all but one"):
        parts(tmp_path, *folders)


def part_of(root: Path, source: str, target: str) -> None:
    shutil.copytree(root / source, root / target)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_validation_folder_beside_test_data_chooses_the_best(tmp_path: Path, loader: str) -> None:
    root = numbered_folder(tmp_path, train=9, val=6)
    part_of(root, "val", "test")
    for image in (root / "test").rglob("*4.png"):
        image.unlink()
    asked = settings(root, loader=loader)
    pipelines.check(asked)
    data = pipelines.build(asked, request(batch=3))
    assert data.test is not None and data.test.samples == 5 and len(whole(data.test)[1]) == 5
    assert data.validation is not None and data.validation.samples == 6 and len(whole(data.validation)[1]) == 6
    data.close()
    held_out = settings(root, validation_samples=3)
    for act in (lambda: pipelines.check(held_out), lambda: pipelines.build(held_out, request(batch=3))):
        with pytest.raises(
            UserError, match=r"data\.validation_samples is 3, and .* has val beside test .*validation_samples=0"
        ):
            act()


def test_without_test_data_samples_must_be_held_out(tmp_path: Path) -> None:
    root = numbered_folder(tmp_path, train=9, val=3)
    shutil.rmtree(root / "val")
    with pytest.raises(UserError, match=r"data\.path: .* has nothing to evaluate on; .*data\.validation_samples"):
        pipelines.check(settings(root))
    asked = settings(root, validation_samples=3)
    pipelines.check(asked)
    data = pipelines.build(asked, request(batch=3))
    assert data.test is None and data.validation is not None and data.validation.samples == 3
    data.close()


def test_the_number_of_classes_is_read(tmp_path: Path) -> None:
    root = numbered_folder(tmp_path, train=9, val=3)
    files(root, "train/__MACOSX/0.jpg")
    asked = ImagenetSettings.model_validate({"name": "imagenet", "path": str(root)})
    with pytest.raises(UserError, match=r"data\.number_of_classes is not known before the data are read; set it"):
        _ = asked.classes
    found = asked.resolved()
    assert found.number_of_classes == found.classes == len(CLASSES)
    assert found.resolved() is found
    pipelines.check(found)
    given = settings(root, number_of_classes=4)
    assert given.resolved() is given
    with pytest.raises(UserError, match=r"number_of_classes is 4, .* has 3 class folders"):
        pipelines.check(given)


def test_without_data_the_number_of_classes_is_asked_for(tmp_path: Path) -> None:
    asked = ImagenetSettings.model_validate({"name": "imagenet", "path": str(tmp_path / "nowhere")})
    with pytest.raises(
        UserError,
        match=r"nowhere/train cannot be read \(No such file.*val/CLASS/\*\.jpg$",
    ):
        asked.resolved()
    files(tmp_path, "train/ape/0.jpg")
    with pytest.raises(UserError, match=r"data\.path: .* has 1 class; there must be 2 to"):
        asked.model_copy(update={"path": str(tmp_path)}).resolved()


def test_lists_of_names_to_leave_out_are_read_with_care(tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_bytes(b"\xef\xbb\xbf# of Windows\r\ntrain/ape/0.jpg\r\n\r\ncaf\xe9\0.jpg")
    assert Excluded.read(str(file)).names == {"train/ape/0.jpg", "caf\udce9\0.jpg"}
    os.truncate(file, 5 << 30)
    with pytest.raises(UserError, match=r"data\.exclude: .* cannot be read \(has 5,368,709,120 bytes, more than"):
        Excluded.read(str(file))
    file.write_bytes(b"\n" * 5_000_000)
    with pytest.raises(UserError, match=r"more than 4,000,000 lines; remove the files instead"):
        Excluded.read(str(file))
    file.unlink()
    os.mkfifo(file)
    for odd, reason in ((str(file), "is a pipe"), ("/dev/zero", "is a device"), (str(tmp_path), "is a folder")):
        with pytest.raises(UserError, match=rf"data\.exclude: .* cannot be read \({reason}"):
            Excluded.read(odd)
    with pytest.raises(UserError, match="null byte"):
        Excluded.read("a\0b")


@pytest.mark.parametrize("name", ["ape/0000.png", "./train/ape/0000.png", "test/ape/0000.png", "train/ape/9.png"])
def test_names_to_leave_out_that_have_no_effect_are_refused(tmp_path: Path, name: str) -> None:
    root = numbered_folder(tmp_path, train=9, val=3)
    (root / "list").write_text(f"train/bee/0001.png\n{name}\n")
    with pytest.raises(UserError, match=rf"data\.exclude: .*list names 1 files that .* does not have, such as {name}"):
        pipelines.build(settings(root, exclude=str(root / "list")), request(batch=3))


def test_images_in_folders_within_can_be_left_out(tmp_path: Path) -> None:
    files(tmp_path, "train/ape/in/1.jpg", "train/ape/in/2.jpg", "list")
    (tmp_path / "list").write_text("train/ape/in/1.jpg\n")
    found = list_images(tmp_path, "train", ["ape"], Excluded.read(str(tmp_path / "list")))
    assert [found.name(i) for i in range(len(found.labels))] == ["train/ape/in/2.jpg"]
    assert found.labels.dtype == np.int64


@pytest.mark.parametrize("place", ["train", "val", "train/ape", "val/ape", "train/ape/inner"])
def test_links_to_themselves_are_refused(tmp_path: Path, place: str) -> None:
    root = numbered_folder(tmp_path, train=9, val=3)
    shutil.rmtree(root / place, ignore_errors=True)
    (root / place).symlink_to(root / place)
    for act in (pipelines.build, pipelines.position_of):
        with pytest.raises(
            UserError, match=r"data\.path: .*(Too many levels of symbolic links|nothing to evaluate on)"
        ):
            act(settings(root), request(batch=3))


@pytest.mark.parametrize("place", ["train/dog", "val/dog", "train/ape/more"])
def test_links_to_nothing_are_refused(tmp_path: Path, place: str) -> None:
    """A class on a disk that is not mounted would be dropped, and the labels of those behind it would shift."""
    root = numbered_folder(tmp_path / "images", train=9, val=3)
    link = root / place
    link.symlink_to(tmp_path / "away")
    with pytest.raises(UserError, match=rf"^data\.path: {link} is a link to {tmp_path / 'away'}, which is not there: "):
        pipelines.build(settings(root, number_of_classes=None).resolved(), request(batch=3))


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 5000, ""])
def test_paths_that_cannot_be(path: str) -> None:
    """A config refuses most of them before; what builds settings without one gets an answer too."""
    for asked in (
        ImagenetSettings.model_construct(name="imagenet", path=path),
        WebdatasetSettings.model_construct(name="webdataset", path=path),
        WebdatasetSettings(name="webdataset", train_shards=path),
        WebdatasetSettings(name="webdataset", val_shards=path, train_shards="*"),
    ):
        for act in (asked.resolved, partial(pipelines.check, asked.model_copy(update={"number_of_classes": 3}))):
            with pytest.raises(UserError) as caught:
                act()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (64, 73), (48, 55), (1, 1)])
def test_the_evaluation_crop_is_in_proportion_unless_given(size: int, resize: int) -> None:
    given = {"name": "imagenet", "image_size": size}
    assert ImagenetSettings.model_validate(given).resize == resize
    assert ImagenetSettings.model_validate({**given, "evaluation_resize": 300}).resize == 300


def test_images_in_no_class_folder_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files(tmp_path, "train/ape/0.jpg", "train/bee/0.jpg")
    list_images(tmp_path, "train", ["ape", "bee"])
    assert not caplog.messages
    files(tmp_path, "train/b.jpg", "train/a.PNG", "train/notes.txt", "train/.hidden.jpg")
    found = list_images(tmp_path, "train", ["ape", "bee"])
    assert len(found.labels) == 2
    (told,) = caplog.messages
    assert told.startswith(f"{tmp_path}/train: 2 images lie in no class folder and are skipped, such as a.PNG;")
