"""Small copies of photographs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.shrink import main
from tests.pipelines.pictures import picture


def shrink(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["shrink", *map(str, words)])
    main()


def test_copies_are_small_and_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, to = tmp_path / "images", tmp_path / "small"
    for part, name, size in (("train", "a.JPEG", (60, 40)), ("val", "b.png", (30, 90))):
        (images / part / "ant").mkdir(parents=True)
        picture(*size, 1).save(images / part / "ant" / name)
    (images / "train/ant/notes.txt").write_text("no image")
    shrink(monkeypatch, "--images", images, "--to", to, "--side", 20)
    assert capsys.readouterr().out == f"2 images in {to}\n"
    assert {path.relative_to(to).as_posix() for path in to.rglob("*.*")} == {"train/ant/a.jpg", "val/ant/b.jpg"}
    sizes = [Image.open(to / name).size for name in ("train/ant/a.jpg", "val/ant/b.jpg")]
    assert [min(size) for size in sizes] == [20, 20]
    assert [max(size) for size in sizes] == [30, 60]
    (to / "train/ant/a.jpg").write_bytes(b"there")
    shrink(monkeypatch, "--images", images, "--to", to, "--side", 20)
    assert (to / "train/ant/a.jpg").read_bytes() == b"there"


def test_a_folder_without_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        shrink(monkeypatch, "--images", tmp_path, "--to", tmp_path / "to")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: --images is {tmp_path}; it has no PART/CLASS/images")
