"""Folders of images with a subfolder a class: which files there are, and of which class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.config import DataError
from pipelines.excluded import NOTHING, Excluded
from pipelines.sources import Bytes, digest

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
_SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS)


@dataclass(frozen=True)
class ImageFiles:
    """An `Encoded` source: files under `root`, with labels int64 [n].

    The paths stand end to end in one array: a million strings would take
    several times the memory, in each worker.
    """

    root: bytes
    """Ends with a slash."""
    paths: NDArray[np.uint8]
    """Relative to `root`."""
    ends: NDArray[np.int64]
    """[n + 1], starting with 0: path i is paths[ends[i] : ends[i + 1]]."""
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    def _relative(self, index: int) -> bytes:
        return self.paths[self.ends[index] : self.ends[index + 1]].tobytes()

    def path(self, index: int) -> Bytes:
        """The path's bytes, as DALI takes it."""
        return np.frombuffer(self.root + self._relative(index), dtype=np.uint8)

    def name(self, index: int) -> str:
        return os.fsdecode(self._relative(index))

    def encoded(self, index: int) -> Bytes:
        with open(self.root + self._relative(index), "rb") as file:
            return np.frombuffer(file.read(), dtype=np.uint8)

    @cached_property
    def listing(self) -> str:
        return digest(self.paths.tobytes(), self.ends.tobytes(), self.labels.tobytes())


def check_folders(path: str, number_of_classes: int) -> list[str]:
    """The names of the classes, sorted: label i is the i-th.

    Raises DataError unless train and val are there, train has so many classes,
    val no others, and each class folder holds an image.
    """
    train, val = Path(path) / "train", Path(path) / "val"
    classes, tested = _class_names(train), _class_names(val)
    if len(classes) != number_of_classes:
        raise DataError(
            f"data.number_of_classes is {number_of_classes}, {train} has {len(classes)} class folders; "
            f"complete the data, or set data.number_of_classes={len(classes)}"
        )
    unknown = sorted(set(tested) - set(classes))
    if unknown:
        raise DataError(
            f"data.path: {val} has {len(unknown)} classes that {train} lacks, such as {unknown[0]}; "
            f"training must know every class: add them to train or remove them from val"
        )
    if not tested:
        raise DataError(f"data.path: {val} has no class folders; put the validation images into val/CLASS/")
    for folder in (*(train / name for name in classes), *(val / name for name in tested)):
        if next(_image_names(folder), None) is None:
            raise DataError(
                f"data.path: {folder} holds no image ({', '.join(EXTENSIONS)}); fill the folder, or remove the class"
            )
    return classes


def list_images(root: Path, part: str, classes: list[str], excluded: Excluded = NOTHING) -> ImageFiles:
    """The images in root/part/CLASS for those of the classes that are there: classes in order, names sorted.

    Raises DataError if the excluded are all there is of a class, or name files that are not there.
    """
    paths: list[bytes] = []
    labels: list[int] = []
    present = set(_class_names(root / part))
    left_out = excluded.under(part)
    for label, name in enumerate(classes):
        if name in present:
            found = [f"{part}/{name}/{image}" for image in sorted(_image_names(root / part / name))]
            kept = [path for path in found if path not in left_out]
            if not kept:
                raise DataError(f"data.exclude: {excluded.file} leaves no image of {part}/{name}; remove the class")
            left_out.difference_update(found)
            paths += map(os.fsencode, kept)
            labels += [label] * len(kept)
    excluded.require_none(left_out, root)
    ends = np.cumsum([0, *map(len, paths)], dtype=np.int64)
    joined = np.frombuffer(b"".join(paths), dtype=np.uint8)
    return ImageFiles(os.fsencode(root) + b"/", joined, ends, np.array(labels, dtype=np.int64), tuple(classes))


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _scan(folder) if entry.is_dir())


def _image_names(folder: Path) -> Iterator[str]:
    return (entry.name for entry in _scan(folder) if entry.name.lower().endswith(_SUFFIXES))


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder, in no order, less hidden ones: those are the system's, not the data set's."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"data.path: {folder} cannot be read ({error.strerror}); "
            "give the folder that holds train/CLASS/*.jpg and val/CLASS/*.jpg"
        ) from None


def class_folders(folder: Path) -> dict[str, tuple[int, int]]:
    """By class, sorted: how many images its folder holds, and how much else. Raises DataError if it cannot be read."""
    found = {}
    for name in _class_names(folder):
        images = sum(1 for _ in _image_names(folder / name))
        found[name] = images, sum(1 for _ in _scan(folder / name)) - images
    return found
