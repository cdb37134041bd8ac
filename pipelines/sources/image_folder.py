"""Folders of images with a subfolder a class: which files there are, and of which class.

A class is a folder, and its images are those in it and in the folders within it, at any depth. Hidden files and folders
are the system's, and so are a few of its own names.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.common.errors import UserError
from pipelines.images.encoded import MOST_BYTES, Bytes
from pipelines.images.image_bytes import read_image
from pipelines.sources.base import digest
from pipelines.sources.excluded import NOTHING, Excluded
from pipelines.sources.parts import TRAIN, Parts, find_parts

log = logging.getLogger(__name__)

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")
_SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS)
_SYSTEM = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"})
"""Folders that systems leave in others: no classes, nor images, but thumbnails and such."""
_NO_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Line ends, controls, and bytes that are no UTF-8 (as surrogates)."""


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

    def encoded(self, index: int, most: int = MOST_BYTES) -> Bytes:
        return read_image(self.root + self._relative(index), most)

    @cached_property
    def listing(self) -> str:
        return digest(self.paths.tobytes(), self.ends.tobytes(), self.labels.tobytes())


def class_names(folder: Path) -> list[str]:
    """The names of the class folders, sorted. UserError for one that lists, pictures and exports could not hold."""
    names = sorted(entry.name for entry in _scan(folder) if _is_folder(folder, entry))
    require_names(f"{folder} has the class", names)
    return names


def require_names(where: str, names: Iterable[str]) -> None:
    """Raise UserError for a class name that a line of a list, a picture or an export could not hold."""
    if odd := next(filter(_NO_NAME.search, names), None):
        raise UserError(
            f"data.path: {where} {odd}, a name with a line end, a control character or bytes that are no UTF-8; "
            "rename it"
        )


def parts_of(root: Path) -> Parts:
    """Which of the folders is for what. Raises UserError."""
    return find_parts(root, holds_samples=lambda folder: any(_is_folder(folder, entry) for entry in _scan(folder)))


def check_folders(root: Path, number_of_classes: int, validation_samples: int) -> tuple[list[str], Parts]:
    """The names of the classes, sorted: label i is the i-th; and which folder is for what.

    Raises UserError unless all is there, for so many classes and so many training samples held out.
    """
    parts = parts_of(root)
    classes = check_classes(root, parts, number_of_classes)
    parts.require(root, validation_samples)
    return classes, parts


def check_classes(root: Path, parts: Parts, number_of_classes: int) -> list[str]:
    """The names of the classes, sorted.

    Raises UserError unless train has so many, the other parts no others, and each class folder holds an image.
    """
    train = root / TRAIN
    classes = class_names(train)
    if len(classes) != number_of_classes:
        raise UserError(
            f"data.number_of_classes is {number_of_classes}, {train} has {len(classes)} class folders; "
            f"complete the data, or set data.number_of_classes={len(classes)}"
        )
    _require_images(train, classes)
    for part in parts.there[1:]:
        tested = class_names(root / part)
        if unknown := sorted(set(tested) - set(classes)):
            raise UserError(
                f"data.path: {root / part} has {len(unknown)} classes that {train} lacks, such as {unknown[0]}; "
                f"training must know every class: add them to train or remove them from {part}"
            )
        if not tested:
            raise UserError(
                f"data.path: {root / part} has no class folders; put the validation images into {part}/CLASS/"
            )
        _require_images(root / part, tested)
    return classes


def _require_images(part: Path, classes: list[str]) -> None:
    for name in classes:
        if not any(is_image for _, is_image in _files(part, name)):
            raise UserError(
                f"data.path: {part / name} holds no image ({', '.join(EXTENSIONS)}); fill the folder, "
                "or remove the class"
            )


def list_images(root: Path, part: str, classes: list[str], excluded: Excluded = NOTHING) -> ImageFiles:
    """The images in root/part/CLASS for those of the classes that are there: classes in order, paths sorted.

    Raises UserError if the excluded are all there is of a class, or name files that are not there.
    """
    paths: list[bytes] = []
    labels: list[int] = []
    present = set(class_names(root / part))
    left_out = excluded.under(part)
    for label, name in enumerate(classes):
        if name in present:
            images = sorted(path for path, is_image in _files(root / part, name) if is_image)
            found = [f"{part}/{name}/{path}" for path in images]
            kept = [path for path in found if path not in left_out] if left_out else found
            if not kept:
                raise UserError(f"data.exclude: {excluded.file} leaves no image of {part}/{name}; remove the class")
            left_out.difference_update(found)
            paths += map(os.fsencode, kept)
            labels += [label] * len(kept)
    excluded.require_none(left_out, root)
    _say_strays(root / part)
    ends = np.cumsum([0, *map(len, paths)], dtype=np.int64)
    joined = np.frombuffer(b"".join(paths), dtype=np.uint8)
    return ImageFiles(os.fsencode(root) + b"/", joined, ends, np.array(labels, dtype=np.int64), tuple(classes))


def _say_strays(folder: Path) -> None:
    """Warn of images that lie beside the class folders: nobody has said what they show."""
    strays = [e.name for e in _scan(folder) if e.name.lower().endswith(_SUFFIXES) and not _is_folder(folder, e)]
    if strays:
        log.warning(
            "%s: %d images lie in no class folder and are left out, such as %s; move them into one, or away",
            folder, len(strays), min(strays),
        )  # fmt: skip


def class_folders(folder: Path) -> dict[str, tuple[int, int]]:
    """By class, sorted: how many images its folder holds, and how much else. Raises UserError if it cannot be read."""
    found = {}
    for name in class_names(folder):
        images = [is_image for _, is_image in _files(folder, name)]
        found[name] = sum(images), len(images) - sum(images)
    return found


def _files(part: Path, name: str) -> Iterator[tuple[str, bool]]:
    """The files of a class, in no order: the path from the class folder on, and whether it is an image by its name.

    No file is opened or asked for its kind. Each folder is entered once, whatever links lead to it, and those above
    never: so links cannot go round in circles, or multiply.
    """
    top = part / name
    entered = {_identity(part.parent), _identity(part)}
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        folder = top / prefix
        if (identity := _identity(folder)) in entered:
            continue
        entered.add(identity)
        inner = []
        for entry in _scan(folder):
            if entry.name.lower().endswith(_SUFFIXES):
                yield prefix + entry.name, True
            elif _is_folder(folder, entry):
                inner.append(f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, False
        waiting += sorted(inner, reverse=True)  # In order: which of two links is entered must not be chance.


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder, in no order, less those that are the system's."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if entry.name[0] != "." and entry.name not in _SYSTEM)
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from None


def _is_folder(folder: Path, entry: os.DirEntry[str]) -> bool:
    """The same for a link to a folder."""
    try:
        return entry.is_dir()
    except OSError as error:
        raise _unreadable(folder / entry.name, error) from None


def _identity(folder: Path) -> tuple[int, int]:
    try:
        found = os.stat(folder)
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from None
    return found.st_dev, found.st_ino


def _unreadable(folder: Path, error: Exception) -> UserError:
    absent = getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR)
    remedy = "give the folder that holds train/CLASS/*.jpg and val/CLASS/*.jpg" if absent else "make it readable"
    return UserError(f"data.path: {folder} cannot be read ({getattr(error, 'strerror', error)}); {remedy}")
