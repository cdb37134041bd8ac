"""Folders of small images to test with, whole and damaged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.datasets.imagenet import ImagenetSettings

CLASSES = ["ape", "bee", "cat"]
DAMAGE = ("truncated", "junk", "empty", "absent", "folder")


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Smooth, as photographs are: a few random colours, enlarged."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def numbered_folder(root: Path, train: int, val: int) -> Path:
    """`train` and `val` images over three classes, each of one colour that says which it is (`number_of`)."""
    for part, count, shift in (("train", train, 0), ("val", val, 128)):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
        for i in range(count):
            colour = (i % 256, shift + i // 256, 77)
            Image.new("RGB", (24, 20), colour).save(root / part / CLASSES[i % 3] / f"{i:04}.png")
    return root


def damage(file: Path, kind: str) -> None:
    content = file.read_bytes()
    file.unlink()
    if kind == "truncated":
        file.write_bytes(content[:-24])
    elif kind == "junk":
        file.write_bytes(bytes(range(256)) * 4)
    elif kind == "empty":
        file.touch()
    elif kind == "absent":
        file.symlink_to("nowhere.png")
    elif kind == "folder":
        file.mkdir()


def put(path: Path, kind: str) -> None:
    """Put something at a path that is no file of ordinary size."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        path.touch()
        os.truncate(path, 5 << 30)


def settings(folder: Path, **options: object) -> ImagenetSettings:
    small = {"image_size": 16, "evaluation_resize": 16, "number_of_classes": 3, "threads": 1}
    return ImagenetSettings.model_validate({"name": "imagenet", "path": str(folder), **small, **options})
