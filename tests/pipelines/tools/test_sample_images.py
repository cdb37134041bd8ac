"""The folder of sample images: what is in it, that it depends on the seed alone, and what is refused."""

from __future__ import annotations

import filecmp
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from pipelines.__main__ import PROGRAM
from pipelines.sources.class_folders import check_folders
from pipelines.tools import sample_images
from pipelines.tools.sample_images import CLASSES, DAMAGE, ODD, File

SMALL = ["--train", "3", "--val", "2", "--size", "24", "60", "--workers", "1"]
SHARE = 0.2
Written = Callable[..., Path]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def same(a: Path, b: Path) -> bool:
    return names(a) == names(b) and all(filecmp.cmp(a / name, b / name, shallow=False) for name in names(a))


def loads(path: Path) -> bool:
    try:
        Image.open(path).load()
    except OSError:
        return False
    return True


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(name: str, *options: object) -> Path:
        assert PROGRAM.run(["sample_images", str(tmp_path / name), *SMALL, *map(str, options)]) == 0
        return tmp_path / name

    return write


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with odd and damaged files."""
    folder = tmp_path_factory.mktemp("sample") / "images"
    assert PROGRAM.run(["sample_images", str(folder), *SMALL, "--odd", "--damaged", str(SHARE)]) == 0
    return folder


def test_layout_and_sizes(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written("a")
    each = {"train": 3, "val": 2}
    assert names(folder) == sorted(
        f"{part}/{c}/{i:04}.jpg" for part, n in each.items() for c in CLASSES for i in range(n)
    )
    assert check_folders(folder, 12, 0)[0] == sorted(CLASSES)
    images = [Image.open(folder / name) for name in names(folder)]
    assert {image.format for image in images} == {"JPEG"}
    sides = np.array([image.size for image in images])
    assert sides.min() >= 24
    assert sides.max() <= 60
    assert len(np.unique(sides, axis=0)) > 40
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: 12 classes, 36 images in train, 24 images in val; train on it with",
        f"launch/local.sh --workers demo -- --config configs/sample_images_resnet.yaml data.path={folder}",
    ]


def test_the_printed_config_is_for_these_classes() -> None:
    config = yaml.safe_load((Path(__file__).parents[3] / "configs/sample_images_resnet.yaml").read_text())
    assert config["data"]["number_of_classes"] == len(CLASSES)


def test_crops_are_of_their_tile() -> None:
    """The largest crop at the lower right, with brightness and contrast unchanged, is what Pillow cuts out."""
    tile = sample_images.tiles()["flower_top_middle"]
    plain = (0.0, 0.0, 1.0, 1.0, 1.0, 0.5, 0.5)
    crop = np.asarray(sample_images.crop(tile, (200, 200), plain), dtype=float)
    aimed = np.asarray(tile.crop((tile.width - 211, tile.height - 211, tile.width, tile.height)).resize((200, 200)))
    assert np.abs(crop - aimed).mean() < 4


@pytest.mark.parametrize("number", [0.0, 0.5, 1.0 - 2.0**-53, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 8), (160, 500)])
def test_every_draw_is_a_crop(number: float, size: tuple[int, int]) -> None:
    for tile in sample_images.tiles().values():
        assert all(size[0] <= side <= size[1] for side in sample_images.crop(tile, size, [number] * 7).size)


def test_the_seed_decides_and_nothing_else(written: Written, rich: Path) -> None:
    first = written("a", "--odd", "--damaged", SHARE)
    assert same(first, rich)
    other = written("b", "--odd", "--damaged", SHARE, "--seed", 1)
    assert not any(filecmp.cmp(rich / name, other / name, shallow=False) for name in names(rich) if "0000" in name)
    more = written("c", "--train", 4)
    for name in set(names(written("d"))):
        assert filecmp.cmp(more / name, first.parent / "d" / name, shallow=False)


def test_processes_change_nothing(written: Written, rich: Path) -> None:
    assert same(written("a", "--odd", "--damaged", SHARE, "--workers", 2), rich)


def test_damaged_files_are_listed(rich: Path, written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    listed = (rich / "damaged.txt").read_text().splitlines()
    broken = [name for name in names(rich) if name != "damaged.txt" and not loads(rich / name)]
    assert sorted(listed) == broken
    assert [sum(name.startswith(part) for name in listed) for part in ("train", "val")] == [7, 5]
    least = written("least", "--damaged", "1e-9")
    assert len((least / "damaged.txt").read_text().splitlines()) == 2
    assert "2 files damaged (see damaged.txt);" in capsys.readouterr().out


def test_kinds_of_damage() -> None:
    path = f"train/{CLASSES[0]}/0000.jpg"
    whole, *damaged = (File(path, (24, 60), 0, damage).content() for damage in ("", *DAMAGE))
    truncated, junk, empty = damaged
    assert truncated == whole[: len(whole) // 2]
    assert len(junk) == len(whole)
    assert junk[:2] != whole[:2]
    assert empty == b""


def test_odd_files(rich: Path) -> None:
    for name in CLASSES:
        opened = {odd: Image.open(rich / "train" / name / odd) for odd in ODD}
        for image in opened.values():
            image.load()
        assert opened["odd_grey.jpg"].mode == "L"
        assert opened["odd_cmyk.jpg"].mode == "CMYK"
        assert opened["odd_png_inside.jpg"].format == "PNG"
        assert opened["odd_1x1.jpg"].size == (1, 1)
        assert opened["odd_5x3.jpg"].size == (5, 3)
        assert [opened[f"odd.{kind}"].format for kind in ("webp", "bmp", "tiff")] == ["WEBP", "BMP", "TIFF"]
    assert not list((rich / "val").rglob("odd*"))


def test_a_lying_image_is_right_once_turned() -> None:
    upright = sample_images.tiles()["china_top_middle"].resize((60, 40))
    stored = Image.open(io.BytesIO(sample_images.lying(upright)))
    assert stored.size == (40, 60)
    turned = np.asarray(ImageOps.exif_transpose(stored), dtype=float)
    assert np.abs(turned - np.asarray(upright)).mean() < 10


def test_what_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("x")
    for folder in (tmp_path, tmp_path / "mine"):
        assert PROGRAM.run(["sample_images", str(folder), *SMALL]) == 2
        rule = "which is there; it must be new or empty: remove it, or give another"
        assert capsys.readouterr().err == f"error: DIR is {folder}, {rule}\n"
    assert PROGRAM.run(["sample_images", str(tmp_path / "mine" / "below"), *SMALL]) == 2
    assert f"cannot be written (File exists: {tmp_path / 'mine'}); give another" in capsys.readouterr().err
    assert names(tmp_path) == ["mine"]


def test_an_empty_folder_is_filled(written: Written, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert len(names(written("a"))) == 60
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--train", "0"], "argument --train: is '0'; it must be a whole number of at least 1"),
        (["--val", "-3"], "argument --val: is '-3'; it must be a whole number of at least 1"),
        (["--workers", "two"], "argument --workers: is 'two'; it must be a whole number of at least 1"),
        (["--damaged", "1.5"], "argument --damaged: is '1.5'; it must be a number of 0 to 1, such as 0.01"),
        (["--damaged", "-0.1"], "argument --damaged: is '-0.1'; it must be a number of 0 to 1, such as 0.01"),
        (["--damaged", "nan"], "argument --damaged: is 'nan'; it must be a number of 0 to 1, such as 0.01"),
        (["--size", "50", "20"], "argument --size: is 50 20; MIN must be at most MAX, and MAX at most 10,000"),
        (["--size", "50", "20000"], "argument --size: is 50 20000; MIN must be at most MAX, and MAX at most 10,000"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--sead", "1"], "unrecognized arguments: --sead 1"),
    ],
)
def test_refusals(options: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert PROGRAM.run(["sample_images", str(tmp_path / "new"), *options]) == 2
    assert capsys.readouterr().err == f"error: {line}; see python -m pipelines sample_images --help\n"
    assert not names(tmp_path)


def test_an_interrupted_call_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = File.content, iter(range(10**6))

    def content(file: File) -> bytes:
        if next(calls) == 20:
            raise KeyboardInterrupt
        return real(file)

    monkeypatch.setattr(File, "content", content)
    assert PROGRAM.run(["sample_images", str(tmp_path / "new"), *SMALL]) == 130
    assert list(tmp_path.iterdir()) == []
