"""WebDataset shards as a source: samples are read by their place in uncompressed tar files, in any order.

shard_samples.py says what a sample is. `python -m pipelines shards` writes and indexes shards.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.common.errors import UserError
from pipelines.common.text import cut
from pipelines.images.encoded import MOST_BYTES, Bytes
from pipelines.images.image_bytes import read_range
from pipelines.sources.base import digest
from pipelines.sources.class_list import read_names
from pipelines.sources.descriptors import Descriptors
from pipelines.sources.excluded import above
from pipelines.sources.labels import named_or_numbered, require_labels
from pipelines.sources.parts import TRAIN, Parts, find_parts
from pipelines.sources.shard_index import INDEX_SUFFIX, Members, decoded, read_index, read_tar
from pipelines.sources.tar_headers import UnusableError

SHARDS = "*.tar"

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Shards:
    """An `Encoded` source in arrays, as `image_folder.ImageFiles`: objects would take several times the memory."""

    root: Path
    paths: tuple[str, ...]
    """The shards, relative to the root."""
    shards: NDArray[np.int32]
    """[n]: index in `paths` of the sample's shard."""
    offsets: NDArray[np.int64]
    """[n]: first byte of the image in the shard."""
    sizes: NDArray[np.int64]
    """[n], in bytes."""
    labels: NDArray[np.int64]
    names: NDArray[np.uint8]
    """Names of the image members, joined."""
    ends: NDArray[np.int64]
    """[n + 1], starting with 0: name i is names[ends[i] : ends[i + 1]]."""
    class_names: tuple[str, ...]
    _opened: Descriptors = field(default_factory=Descriptors, init=False, repr=False)

    @cached_property
    def listing(self) -> str:
        paths = "\0".join(self.paths).encode(errors="surrogateescape")
        arrays = (self.shards, self.names, self.ends, self.labels, self.offsets, self.sizes)
        return digest(paths, *(array.tobytes() for array in arrays))

    def name(self, index: int) -> str:
        member = decoded(self.names[self.ends[index] : self.ends[index + 1]])
        return f"{self.paths[self.shards[index]]}/{member}"

    def encoded(self, index: int, most: int = MOST_BYTES) -> Bytes:
        path = os.path.join(self.root, self.paths[self.shards[index]])
        offset, size = int(self.offsets[index]), int(self.sizes[index])
        descriptor = self._opened.get(path)
        content = read_range(descriptor.number, offset, size, most)
        if len(content) < size:
            raise OSError(f"{path} ends at byte {offset + len(content)}, within {self.name(index)}: it has changed")
        return content

    def reopen(self) -> None:
        self._opened.clear()


def list_shards(
    root: Path,
    pattern: str,
    number_of_classes: int,
    excluded: frozenset[str] = frozenset(),
    *,
    setting: str = "data.train_shards",
    every_class: bool = True,
) -> Shards:
    """Return the samples of the shards that match `pattern`, a glob relative to `root`.

    Shards are sorted by name; samples keep their order.

    `excluded` are names of samples to skip; names of other shards are ignored. `setting` names the pattern in messages.
    Raises UserError if a shard or a label is unusable, or, with `every_class`, if a class has no sample.
    """
    paths = matching(root, pattern, setting)
    parts = _without(_all_members(root, paths, setting), paths, excluded)
    names, lengths, offsets, sizes, labels = (
        np.concatenate([getattr(part, each.name) for part in parts]) for each in dataclasses.fields(Members)
    )
    counts = [len(part.labels) for part in parts]
    numbers = np.repeat(np.arange(len(parts), dtype=np.int32), counts)
    ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
    class_names = named_or_numbered(read_names(root), number_of_classes)
    found = Shards(root, paths, numbers, offsets, sizes, labels, names, ends, class_names)
    require_labels(
        labels,
        class_names,
        lambda index: f"{found.name(index)} in {root}",
        where=f"the shards {pattern!r} in {root}",
        setting=setting,
        every_class=every_class,
    )
    return found


def matching(root: Path, pattern: str, setting: str, example: str = "train/*.tar") -> tuple[str, ...]:
    """Return the sorted paths of the shards, relative to the root, without hidden files and indexes."""
    try:
        found = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
    except (ValueError, NotImplementedError, OSError, RecursionError):  # Empty, absolute, too long, too deep.
        found = []
    shards = (path for path in found if not path.endswith(INDEX_SUFFIX) and not os.path.basename(path).startswith("."))
    if not (paths := tuple(shards)):
        raise UserError(
            f"{setting}: {cut(repr(pattern), 200)} matches no shard in {root}; "
            f"give a pattern relative to that folder, such as '{example}'"
        )
    return paths


def _all_members(root: Path, paths: Iterable[str], setting: str) -> list[Members]:
    """Read the members of each shard from its index, else from the shard, which takes longer."""
    parts, refused = [], []
    for path in paths:
        try:
            part = read_index(root / path)
        except UnusableError as error:
            refused.append(f"{path}{INDEX_SUFFIX} {error}")
            part = None
        parts.append(read_tar(root / path, setting) if part is None else part)
    if refused:
        log.warning(
            "%d indexes in %s are not used: %s. To renew: python -m pipelines shards index %s",
            len(refused), root, refused[0], root,
        )  # fmt: skip
    return parts


def _without(parts: list[Members], paths: tuple[str, ...], excluded: frozenset[str]) -> list[Members]:
    parts = list(parts)
    numbers = {path: number for number, path in enumerate(paths)}
    unwanted: dict[int, set[str]] = {}
    for name in excluded:
        for path in above(name):
            if (number := numbers.get(path)) is not None:
                unwanted.setdefault(number, set()).add(name[len(path) + 1 :])
    for number, members in unwanted.items():
        names = parts[number].decoded_names()
        if unknown := sorted(members - set(names)):
            raise UserError(
                f"data.exclude: {paths[number]}/{unknown[0]} is to be skipped, but the shard has no such image; "
                "correct the list of names"
            )
        parts[number] = parts[number].kept(np.array([name not in members for name in names]))
    return parts


def shard_parts(root: Path) -> Parts:
    """Return the patterns of the shards in the folders of the parts. Raises UserError."""
    parts = find_parts(root, holds_samples=lambda folder: any(folder.glob(SHARDS)))
    test, validation = (None if name is None else f"{name}/{SHARDS}" for name in (parts.test, parts.validation))
    return Parts(test, validation, f"{TRAIN}/{SHARDS}")


def count_classes(root: Path, pattern: str, setting: str = "data.train_shards") -> int:
    """Count the names in `classes.txt`, else the labels in the shards, from 0 on. Raises UserError."""
    if names := read_names(root):
        return len(names)
    parts = _all_members(root, matching(root, pattern, setting), setting)
    return 1 + max((int(part.labels.max()) for part in parts if len(part.labels)), default=-1)
