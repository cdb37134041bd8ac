"""CIFAR-10's images as JPEG files."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.jpeg_cifar10 import main, write
from pipelines.sources.base import Arrays


def test_files_are_numbered_by_class(tmp_path: Path) -> None:
    images = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    images[:, :, :, 1] = np.array([0, 100, 200], dtype=np.uint8)[:, None, None]
    write(Arrays(images, np.array([1, 0, 1]), ("cat", "dog")), tmp_path / "train")
    files = {path.relative_to(tmp_path).as_posix(): Image.open(path) for path in tmp_path.rglob("*.jpg")}
    assert sorted(files) == ["train/cat/0000.jpg", "train/dog/0000.jpg", "train/dog/0001.jpg"]
    green = [np.asarray(files[name])[:, :, 1].mean() for name in ("train/dog/0000.jpg", "train/dog/0001.jpg")]
    assert green == pytest.approx([0, 200], abs=3), "in the order of the data set"
    assert files["train/cat/0000.jpg"].size == (32, 32)


def test_a_folder_without_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jpeg_cifar10", "--images", str(tmp_path), "--to", str(tmp_path / "to")])
    with pytest.raises(SystemExit, match=r"error: data\.path: .*cifar-10-batches-py lacks data_batch_1"):
        main()
    assert not (tmp_path / "to").exists()
