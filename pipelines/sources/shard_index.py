"""Places of the samples in a WebDataset shard: from the headers of the tar, or from an index beside it.

The index of `NAME.tar` is `NAME.tar.index`. It is untrusted, so it is checked against the shard. shard_samples.py says
how members make samples.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.common.errors import UserError
from pipelines.common.files import open_regular, read_bytes, require_regular
from pipelines.sources.base import digest
from pipelines.sources.shard_samples import samples_in
from pipelines.sources.tar_headers import BLOCK, UnusableError

INDEX_SUFFIX = ".index"
INDEX_KIND = b"dynsparse shard index 2\n"
LARGEST_INDEX = 128 << 20
"""Bytes, for more than a million samples in one shard."""
_HEAD = len(INDEX_KIND) + 32
"""Bytes of the head: the kind, then four numbers: samples, bytes of all names, and the stamp of two."""


@dataclass(frozen=True)
class Members:
    """The images of one shard, in the order of the shard. All arrays but `names` are int64 [samples]."""

    names: NDArray[np.uint8]
    """The members' names, end to end."""
    lengths: NDArray[np.int64]
    """Lengths of the names, in bytes."""
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]

    def kept(self, kept: NDArray[np.bool_]) -> Members:
        """Return the samples where `kept`, bool [samples], is True."""
        rest = (values[kept] for values in (self.lengths, self.offsets, self.sizes, self.labels))
        return Members(self.names[np.repeat(kept, self.lengths)], *rest)

    def decoded_names(self) -> list[str]:
        """Return the members' names as Python's tarfile has them."""
        ends = np.cumsum(self.lengths)
        return [decoded(self.names[end - n : end]) for end, n in zip(ends, self.lengths, strict=True)]

    def fit(self, size: int) -> bool:
        """Return True if a shard of `size` bytes can hold these members."""
        offsets = self.offsets
        return bool(
            ((self.lengths > 0) & (self.lengths <= len(self.names))).all()
            and int(self.lengths.sum()) == len(self.names)
            and ((offsets >= BLOCK) & (offsets % BLOCK == 0) & (offsets <= size)).all()
            and ((self.sizes >= 0) & (self.sizes <= size - offsets)).all()
        )


def decoded(name: NDArray[np.uint8]) -> str:
    """Return a member's name as Python's tarfile has it."""
    return name.tobytes().decode(errors="surrogateescape")


def read_tar(path: Path, setting: str) -> Members:
    """Read the headers of a shard. Raises UserError."""
    try:
        with open_regular(path) as file:
            found = samples_in(file)
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); make it readable, or exclude it from the pattern"
    except UnusableError as error:
        reason = str(error)
    else:
        numbers = np.array([(len(s.name), s.offset, s.size, s.label) for s in found], dtype=np.int64).reshape(-1, 4)
        names = np.frombuffer(b"".join(sample.name for sample in found), dtype=np.uint8)
        return Members(names, *np.ascontiguousarray(numbers.T))
    raise UserError(f"{setting}: {path} {reason}")


def read_index(path: Path) -> Members | None:
    """Read the index beside a shard; None if there is none.

    Raises UnusableError if it is damaged or of another state of the shard.
    """
    try:
        stored = read_bytes(index_of(path), LARGEST_INDEX)
        stamp = _stamp(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnusableError(f"cannot be read ({error.strerror})") from None
    content, check = memoryview(stored)[:-16], stored[-16:]
    if not stored.startswith(INDEX_KIND) or check != digest(content).encode():
        raise UnusableError("is damaged, or of another version")
    # The digest finds accidents, not forgeries: anybody can compute it.
    numbers, arrays = content[len(INDEX_KIND) : _HEAD], content[_HEAD:]
    samples, names, *state = np.frombuffer(numbers, dtype="<i8").tolist() if len(numbers) == 32 else (-1, 0)
    if not 0 <= samples <= len(arrays) or 32 * samples + names != len(arrays):
        raise UnusableError("is damaged, or of another version")
    if tuple(state) != stamp:
        raise UnusableError("is not of this state of the shard: size or time of change differ")
    table = np.frombuffer(arrays[: 32 * samples], dtype="<i8").astype(np.int64, copy=False).reshape(4, samples)
    found = Members(np.frombuffer(arrays[32 * samples :], dtype=np.uint8), *table)
    if not found.fit(stamp[0]):
        raise UnusableError("names samples that cannot be in the shard")
    return found


def write_index(path: Path, setting: str) -> None:
    """Read a shard and write its index beside it, whole or not at all. Raises UserError or OSError."""
    try:
        stamp = _stamp(path)  # Before reading: any later change makes the index invalid.
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read ({error.strerror}); exclude it from the pattern") from None
    found = read_tar(path, setting)
    table = np.stack((found.lengths, found.offsets, found.sizes, found.labels)).astype("<i8")
    numbers = np.array((len(found.labels), len(found.names), *stamp), dtype="<i8")
    content = INDEX_KIND + numbers.tobytes() + table.tobytes() + found.names.tobytes()
    draft = path.with_name(f".{path.name}.{os.getpid()}{INDEX_SUFFIX}")
    try:
        draft.write_bytes(content + digest(content).encode())
        os.replace(draft, index_of(path))
    finally:
        draft.unlink(missing_ok=True)


def index_of(shard: Path) -> Path:
    """Return the path of a shard's index."""
    return shard.with_name(shard.name + INDEX_SUFFIX)


def _stamp(shard: Path) -> tuple[int, int]:
    """Return the size in bytes, and the time of the last change in nanoseconds."""
    found = shard.stat()
    require_regular(shard, found, None)
    return found.st_size, found.st_mtime_ns
