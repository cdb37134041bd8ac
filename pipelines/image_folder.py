"""Folders of images with a subfolder a class: which files there are, and of which class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.config import DataError

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
_SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS)


@dataclass(frozen=True)
class ImageFiles:
    """Files with labels int64 [n].

    The paths stand end to end in one array: a million strings would take
    several times the memory, in each worker.
    """

    paths: NDArray[np.uint8]
    ends: NDArray[np.int64]
    """[n + 1], starting with 0: path i is paths[ends[i] : ends[i + 1]]."""
    labels: NDArray[np.int64]

    def path(self, index: int) -> NDArray[np.uint8]:
        """The path's bytes."""
        return self.paths[self.ends[index] : self.ends[index + 1]]


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


def list_images(folder: Path, classes: list[str]) -> ImageFiles:
    """The images in the folders of those of the classes that are there: classes in order, names sorted."""
    paths: list[bytes] = []
    labels: list[int] = []
    present = set(_class_names(folder))
    for label, name in enumerate(classes):
        if name in present:
            found = sorted(_image_names(folder / name))
            prefix = os.fsencode(folder / name) + b"/"
            paths += (prefix + os.fsencode(image) for image in found)
            labels += [label] * len(found)
    ends = np.cumsum([0, *map(len, paths)], dtype=np.int64)
    return ImageFiles(np.frombuffer(b"".join(paths), dtype=np.uint8), ends, np.array(labels, dtype=np.int64))


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
