"""What stands where in a WebDataset shard: from the headers of the tar, or from an index beside it (`NAME.tar.index`).

A sample is the members that share a key, the path up to the first dot of its base name: an image (`a/7.jpg`) and its
label (`a/7.cls`, an integer in ASCII). Other members are ignored.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipelines.config import DataError
from pipelines.image_folder import EXTENSIONS
from pipelines.sources import digest

LABEL = "cls"
INDEX_SUFFIX = ".index"
INDEX_KIND = b"dynsparse shard index 1"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class UnusableError(Exception):
    """What is wrong with a file, and the remedy: the rest of a sentence that begins with its name."""


@dataclass(frozen=True)
class Members:
    """The images of one shard, in the order of the shard. All arrays but `names` are int64 [samples]."""

    names: NDArray[np.uint8]
    """The members' names, end to end."""
    lengths: NDArray[np.int64]
    """Of the names, in bytes."""
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]

    def kept(self, kept: NDArray[np.bool_]) -> Members:
        """Those for which `kept`, bool [samples], holds."""
        rest = (values[kept] for values in (self.lengths, self.offsets, self.sizes, self.labels))
        return Members(self.names[np.repeat(kept, self.lengths)], *rest)

    def decoded_names(self) -> list[str]:
        ends = np.cumsum(self.lengths)
        return [decoded(self.names[end - n : end]) for end, n in zip(ends, self.lengths, strict=True)]


def decoded(name: NDArray[np.uint8]) -> str:
    """A member's name, as Python's tarfile has it."""
    return name.tobytes().decode(errors="surrogateescape")


def read_tar(path: Path, setting: str) -> Members:
    """From the headers of a shard. Raises DataError."""
    try:
        with path.open("rb") as file:
            return _samples(file)
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); make it readable, or leave it out of the pattern"
    except UnusableError as error:
        reason = str(error)
    raise DataError(f"{setting}: {path} {reason}")


def _samples(file: BinaryIO) -> Members:
    """The members of a tar, by twos."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    for member in _members(file):
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, extension = folder + slash + stem, extension.lower()
        if not stem or member.isdir() or extension not in (*EXTENSIONS, LABEL):
            continue
        if not member.isreg() or member.issparse():
            raise UnusableError(
                f"has {member.name} as a link or sparse; pack it with tar --dereference --hard-dereference"
            )
        if key in (labels if extension == LABEL else images):
            kind = "label" if extension == LABEL else "image"
            raise UnusableError(
                f"has a second {kind} of sample {key}, {member.name}; give each sample a key of its own"
            )
        if extension == LABEL:
            labels[key] = _label(file, member)
        else:
            images[key] = member
    _require_pairs(images, labels)
    names = [member.name.encode(errors="surrogateescape") for member in images.values()]
    return Members(
        np.frombuffer(b"".join(names), dtype=np.uint8),
        np.array([len(name) for name in names], dtype=np.int64),
        np.array([member.offset_data for member in images.values()], dtype=np.int64),
        np.array([member.size for member in images.values()], dtype=np.int64),
        np.array([labels[key] for key in images], dtype=np.int64),
    )


def _require_pairs(images: Collection[str], labels: Collection[str]) -> None:
    if unlabelled := [key for key in images if key not in labels]:
        key = unlabelled[0]
        raise UnusableError(f"has an image of sample {key} but no label ({key}.{LABEL}); add it, or remove the image")
    if without := [key for key in labels if key not in images]:
        kinds = ", ".join(EXTENSIONS)
        raise UnusableError(f"has a label of sample {without[0]} but no image ({kinds}); add it, or remove the label")


def _label(file: BinaryIO, member: tarfile.TarInfo) -> int:
    text = os.pread(file.fileno(), min(member.size, 64), member.offset_data)
    if member.size > 64 or not re.fullmatch(rb"\s*[+-]?\d{1,18}\s*", text):
        raise UnusableError(f"has {text[:20]!r} as label in {member.name}; a label is the number of a class, such as 7")
    return int(text)


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The members of a tar. Raises UnusableError unless the tar is whole.

    Python's reader alone would take many a truncated or damaged tar for one that ends earlier.
    """
    size = os.fstat(file.fileno()).st_size
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            for member in tar:
                if member.size < 0:
                    raise UnusableError(f"is damaged: {member.name} has {member.size} bytes; copy it anew")
                if member.offset_data + member.size > size and not member.issparse():
                    raise UnusableError(f"is truncated: it ends at byte {size}, within {member.name}; copy it anew")
                end = tar.offset
                yield member
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError) as error:
        head = os.pread(file.fileno(), 8, 0)
        for magic, name in _COMPRESSED.items():
            if end == 0 and head.startswith(magic):
                raise UnusableError(f"is compressed ({name}), samples are read by their place; decompress it") from None
        raise UnusableError(f"is no tar, or damaged after byte {end} ({error}); copy it anew") from None
    tail = os.pread(file.fileno(), 1 << 20, end)
    if len(tail) < tarfile.BLOCKSIZE:
        raise UnusableError(f"is truncated: it ends at byte {size}, without the mark of a tar's end; copy it anew")
    if tail.strip(b"\0"):
        raise UnusableError(
            f"is damaged, or several tars in one: at byte {end} it has neither a member nor the end; pack it anew"
        )


def read_index(path: Path) -> Members | None:
    """From the index beside a shard; None if there is none. UnusableError if it is damaged or of another shard."""
    try:
        stored = index_of(path).read_bytes()
        stamp = _stamp(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnusableError(f"cannot be read ({error.strerror})") from None
    # The digest stands behind the archive: np.load reads the file all the same.
    content, check = stored[:-16], stored[-16:]
    if check != digest(INDEX_KIND, content).encode():
        raise UnusableError("is damaged, or of another version")
    with np.load(io.BytesIO(content)) as arrays:
        if not np.array_equal(arrays["stamp"], stamp):
            raise UnusableError("is not of this state of the shard: size or time of change differ")
        return Members(**{each.name: arrays[each.name] for each in dataclasses.fields(Members)})


def write_index(path: Path, setting: str) -> None:
    """Reads a shard and writes its index beside it, whole or not at all. Raises DataError or OSError."""
    stamp = _stamp(path)  # Before reading: whatever is changed from now on makes the index void.
    arrays = vars(read_tar(path, setting))
    buffer = io.BytesIO()
    np.savez(buffer, stamp=np.array(stamp, dtype=np.int64), **arrays)
    content = buffer.getvalue()
    draft = path.with_name(f".{path.name}.{os.getpid()}{INDEX_SUFFIX}")
    try:
        draft.write_bytes(content + digest(INDEX_KIND, content).encode())
        os.replace(draft, index_of(path))
    finally:
        draft.unlink(missing_ok=True)


def index_of(shard: Path) -> Path:
    return shard.with_name(shard.name + INDEX_SUFFIX)


def _stamp(shard: Path) -> tuple[int, int]:
    """Bytes, and nanoseconds at the last change."""
    found = shard.stat()
    return found.st_size, found.st_mtime_ns
