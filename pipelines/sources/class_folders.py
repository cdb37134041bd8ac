"""Folders of images with a subfolder a class: the classes, and the parts to train and to evaluate on.

A class is a folder. Its images are in it and in the folders within it, at any depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.sources.parts import TRAIN, Parts, find_parts, require_apart
from pipelines.sources.walking import EXTENSIONS, entries_of, files_of, is_folder, is_image, require_there

_NO_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Line ends, control characters, and bytes that are no UTF-8 (as surrogates)."""


def class_names(folder: Path) -> list[str]:
    """Return the sorted names of the class folders. Raises UserError for an invalid name, and a link to nothing."""
    names = []
    for entry in entries_of(folder):
        if is_folder(folder, entry):
            names.append(entry.name)
        elif not is_image(entry.name):
            require_there(folder, entry)
    names.sort()
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
    return find_parts(root, holds_samples=lambda folder: any(is_folder(folder, entry) for entry in entries_of(folder)))


def check_folders(root: Path, number_of_classes: int, validation_samples: int) -> tuple[list[str], Parts]:
    """Return the sorted names of the classes (label i is the i-th) and the parts.

    Raises UserError unless everything is there for this number of classes and of held-out training samples.
    """
    parts = parts_of(root)
    classes = check_classes(root, parts, number_of_classes)
    require_apart(root, {part: [part] for part in parts.there})
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
        if not any(is_image for _, is_image in files_of(part, name)):
            raise UserError(
                f"data.path: {part / name} holds no image ({', '.join(EXTENSIONS)}); fill the folder, "
                "or remove the class"
            )


def class_folders(folder: Path) -> dict[str, tuple[int, int]]:
    """Count images and other files of each class, sorted by class. Raises UserError if a folder cannot be read."""
    found = {}
    for name in class_names(folder):
        images = [is_image for _, is_image in files_of(folder, name)]
        found[name] = sum(images), len(images) - sum(images)
    return found
