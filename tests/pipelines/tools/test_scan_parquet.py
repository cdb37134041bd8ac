"""The scan of parquet files: what it lists as bad is what training would stop at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.__main__ import PROGRAM
from tests.pipelines.parquet_files import from_folder, settings, table, write
from tests.pipelines.pictures import damage, numbered_folder
from tests.pipelines.streams import request, whole

import pipelines  # isort: skip


@pytest.mark.parametrize(
    ("options", "part"),
    [([], "validation"), (["--shards", "data/train-*.parquet", "data/validation-*.parquet"], "val")],
)
def test_bad_images_are_listed_and_can_be_left_out(tmp_path: Path, options: list[str], part: str) -> None:
    folder = numbered_folder(tmp_path / "folder", train=30, val=9)
    damage(folder / "train/bee/0004.png", "junk")
    damage(folder / "val/ape/0000.png", "truncated")
    root = from_folder(folder, tmp_path / "parquet", shards=2)
    assert PROGRAM.run(["scan", str(root), "--workers", "1", *options]) == 0
    report = json.loads((root / "scan.json").read_text())
    bad = ["data/train-00000-of-00002.parquet/11", "data/validation-00000-of-00002.parquet/0"]
    assert list(report["bad"]) == bad and report["images"] == {"train": 30, part: 9}
    assert report["classes"]["train"]["bee"] == {"images": 10, "bad": 1}
    assert report["formats"] == {"png": 37} and report["odd"]["misnamed"] == 0
    data = pipelines.build(settings(root, exclude=str(root / "exclude.txt")), request())
    assert len(whole(data.test)[1]) == 8 and data.sizes["train"].samples == 29
    data.close()


def test_columns_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = table([(b"no image", 0)] * 4).rename_columns(["image", "fine"])
    write(tmp_path / "train-0.parquet", shown.append_column("coarse", shown["fine"]))
    assert PROGRAM.run(["scan", str(tmp_path), "--workers", "1"]) == 2
    assert "error: --shards: " in (said := capsys.readouterr().err) and "has fine, coarse, where one column" in said
    assert PROGRAM.run(["scan", str(tmp_path), "--workers", "1", "--label-column", "fine"]) == 2
    assert "all 4 images are bad, such as train-0.parquet/0" in capsys.readouterr().err


def test_parquet_files_that_are_for_no_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "all.parquet", [(b"x", 0)])
    assert PROGRAM.run(["scan", str(tmp_path)]) == 2
    assert "holds no images (train/CLASS/* and val/CLASS/*) and no shards" in capsys.readouterr().err
