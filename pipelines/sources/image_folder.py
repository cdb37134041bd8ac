"""Images in folders with a subfolder a class, as a source."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.common.errors import UserError
from pipelines.images.encoded import MOST_BYTES, Bytes
from pipelines.images.image_bytes import read_image
from pipelines.sources.base import digest
from pipelines.sources.class_folders import class_names
from pipelines.sources.excluded import NOTHING, Excluded
from pipelines.sources.walking import entries_of, files_of, is_folder, is_image

log = logging.getLogger(__name__)


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

    def reopen(self) -> None:
        """No file is kept open."""

    @cached_property
    def listing(self) -> str:
        return digest(self.paths.tobytes(), self.ends.tobytes(), self.labels.tobytes())


def list_images(root: Path, part: str, classes: list[str], excluded: Excluded = NOTHING) -> ImageFiles:
    """Return the images in root/part/CLASS, for the classes that exist there: classes in order, paths sorted.

    Raises UserError if all images of a class are excluded, or excluded names do not exist.
    """
    paths: list[bytes] = []
    labels: list[int] = []
    present = set(class_names(root / part))
    unwanted = excluded.under(part)
    for label, name in enumerate(classes):
        if name in present:
            images = sorted(path for path, image in files_of(root / part, name) if image)
            found = [f"{part}/{name}/{path}" for path in images]
            kept = [path for path in found if path not in unwanted] if unwanted else found
            if not kept:
                raise UserError(f"data.exclude: {excluded.file} leaves no image of {part}/{name}; remove the class")
            unwanted.difference_update(found)
            paths += map(os.fsencode, kept)
            labels += [label] * len(kept)
    excluded.require_none(unwanted, root)
    _say_strays(root / part)
    ends = np.cumsum([0, *map(len, paths)], dtype=np.int64)
    joined = np.frombuffer(b"".join(paths), dtype=np.uint8)
    return ImageFiles(os.fsencode(root) + b"/", joined, ends, np.array(labels, dtype=np.int64), tuple(classes))


def _say_strays(folder: Path) -> None:
    """Warn of images beside the class folders, whose class is unknown."""
    strays = [e.name for e in entries_of(folder) if is_image(e.name) and not is_folder(folder, e)]
    if strays:
        log.warning(
            "%s: %d images lie in no class folder and are skipped, such as %s; move them into one, or away",
            folder, len(strays), min(strays),
        )  # fmt: skip
