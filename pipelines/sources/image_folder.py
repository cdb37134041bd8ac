"""Folders of images with a subfolder a class.

A class is a folder. Its images are in it and in the folders within it, at any depth. Hidden files and folders, and a
few names that systems use, are ignored.
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
"""Folders that systems create in others: they hold no images, but thumbnails and such."""
_NO_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Line ends, control characters, and bytes that are no UTF-8 (as surrogates)."""


@dataclass(frozen=True)
class ImageFiles:
    """An `Encoded` source: files under `root`, with labels int64 [n].

    The paths are joined in one array: a million strings would take several times the memory, in each worker.
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
        """Return the path's bytes."""
        return np.frombuffer(self.root + self._relative(index), dtype=np.uint8)

    def name(self, index: int) -> str:
        return os.fsdecode(self._relative(index))

    def encoded(self, index: int, most: int = MOST_BYTES) -> Bytes:
        return read_image(self.root + self._relative(index), most)

    @cached_property
    def listing(self) -> str:
        return digest(self.paths.tobytes(), self.ends.tobytes(), self.labels.tobytes())


def class_names(folder: Path) -> list[str]:
    """Return the sorted names of the class folders. Raises UserError for an invalid name."""
    names = sorted(entry.name for entry in _scan(folder) if _is_folder(folder, entry))
    require_names(f"{folder} has the class", names)
    return names


def require_names(where: str, names: Iterable[str]) -> None:
    """Raise UserError for a class name that a line of a list, a picture or an export cannot hold."""
    if odd := next(filter(_NO_NAME.search, names), None):
        raise UserError(
            f"data.path: {where} {odd}, a name with a line end, a control character or bytes that are no UTF-8; "
            "rename it"
        )


def parts_of(root: Path) -> Parts:
    """Return the parts of a data set, by the names of its folders. Raises UserError."""
    return find_parts(root, holds_samples=lambda folder: any(_is_folder(folder, entry) for entry in _scan(folder)))


def check_folders(root: Path, number_of_classes: int, validation_samples: int) -> tuple[list[str], Parts]:
    """Return the sorted names of the classes (label i is the i-th) and the parts.

    Raises UserError unless everything is there for this number of classes and of held-out training samples.
    """
    parts = parts_of(root)
    classes = check_classes(root, parts, number_of_classes)
    parts.require(root, validation_samples)
    return classes, parts


def check_classes(root: Path, parts: Parts, number_of_classes: int) -> list[str]:
    """Return the sorted names of the classes.

    Raises UserError unless train has this number of classes, the other parts have no others, and each class folder
    holds an image.
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
    """Return the images in root/part/CLASS, for the classes that exist there: classes in order, paths sorted.

    Raises UserError if all images of a class are excluded, or excluded names do not exist.
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
    """Warn of images beside the class folders, whose class is unknown."""
    strays = [e.name for e in _scan(folder) if e.name.lower().endswith(_SUFFIXES) and not _is_folder(folder, e)]
    if strays:
        log.warning(
            "%s: %d images lie in no class folder and are skipped, such as %s; move them into one, or away",
            folder, len(strays), min(strays),
        )  # fmt: skip


def class_folders(folder: Path) -> dict[str, tuple[int, int]]:
    """Count images and other files of each class, sorted by class. Raises UserError if a folder cannot be read."""
    found = {}
    for name in class_names(folder):
        images = [is_image for _, is_image in _files(folder, name)]
        found[name] = sum(images), len(images) - sum(images)
    return found


def _files(part: Path, name: str) -> Iterator[tuple[str, bool]]:
    """Yield the files of a class, in no order: the path in the class folder, and True if its name is an image's.

    No file is opened or examined. Each folder is entered once, whatever links lead to it, and folders above it never:
    so links cannot make a circle, or multiply files.
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
        waiting += sorted(inner, reverse=True)  # Sorted: which of two links is entered must not depend on chance.


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, in no order, without those of the system."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if entry.name[0] != "." and entry.name not in _SYSTEM)
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from None


def _is_folder(folder: Path, entry: os.DirEntry[str]) -> bool:
    """Return True for a folder or a link to one. Raises UserError if it cannot be read."""
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
