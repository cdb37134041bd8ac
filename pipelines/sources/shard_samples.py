"""Samples of a WebDataset shard: an image (`a/7.jpg`) and its label, a number (`a/7.cls`).

A sample's key is the member's path up to the first dot of its base name. If image and label agree up to their last dot,
the key ends there: `img.0001.jpg` and `img.0001.cls` are one sample. A member with more between key and extension, such
as `7.seg.png`, is another part of a sample, and skipped. So are hidden files and members that are neither image nor
label. An image or a label without its counterpart is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import BinaryIO

from pipelines.sources.tar_headers import Member, UnusableError, members
from pipelines.sources.walking import EXTENSIONS

LABEL = "cls"
_IMAGES = {extension.encode() for extension in EXTENSIONS}
_LABEL = LABEL.encode()
_LONGEST_LABEL = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """An image in a shard, and its class."""

    name: bytes
    offset: int
    size: int
    label: int


@dataclass
class _Found:
    """The images or the labels of a shard, by key, in the order of the shard."""

    kind: str
    by_key: dict[bytes, Member] = field(default_factory=dict)
    again: dict[bytes, Member] = field(default_factory=dict)
    """A second member with the same key, by key."""

    def add(self, key: bytes, member: Member) -> None:
        if self.by_key.setdefault(key, member) is not member:
            self.again.setdefault(key, member)

    def require_usable(self, keys: Iterable[bytes]) -> None:
        """Raise UnusableError unless each key has one member, a regular file."""
        for key in keys:
            if key in self.again:
                raise UnusableError(
                    f"has a second {self.kind} of sample {_text(key)}, {_text(self.again[key].name)}; "
                    "give each sample a key of its own"
                )
            if not self.by_key[key].is_regular:
                raise UnusableError(
                    f"has {_text(self.by_key[key].name)} as a link or sparse; "
                    "pack it with tar --dereference --hard-dereference"
                )


def samples_in(file: BinaryIO) -> list[Sample]:
    """Return the samples of a tar, in the order of their images. Raises UnusableError."""
    images, labels = _Found("image"), _Found("label")
    for member in members(file):
        key, extension = _key(member.name)
        if key and not member.is_folder:
            if extension in _IMAGES:
                images.add(key, member)
            elif extension == _LABEL:
                labels.add(key, member)
    keys = [key for key in images.by_key if key in labels.by_key]
    _require_pairs(images, labels, set(keys))
    images.require_usable(keys)
    labels.require_usable(keys)
    found = ((images.by_key[key], labels.by_key[key]) for key in keys)
    return [Sample(image.name, image.offset, image.size, _label(file, label)) for image, label in found]


def _key(name: bytes) -> tuple[bytes, bytes]:
    """Return the name up to the last dot and the lower-case extension; empty for hidden files and without extension."""
    folder, slash, base = name.rpartition(b"/")
    stem, _, extension = base.rpartition(b".")
    if not stem or base[:1] == b".":
        return b"", b""
    return folder + slash + stem, extension.lower()


def _require_pairs(images: _Found, labels: _Found, keys: set[bytes]) -> None:
    """Raise UnusableError for an image or a label that is neither in a sample nor another part of one."""
    if (key := _alone(images, keys)) is not None:
        name = _text(key)
        raise UnusableError(f"has an image of sample {name} but no label ({name}.{LABEL}); add it, or remove the image")
    if (key := _alone(labels, keys)) is not None:
        kinds = ", ".join(EXTENSIONS)
        raise UnusableError(f"has a label of sample {_text(key)} but no image ({kinds}); add it, or remove the label")


def _alone(found: _Found, keys: set[bytes]) -> bytes | None:
    """Return the first key that is neither of a sample nor of another part of one."""
    for key in found.by_key:
        if key not in keys and _short(key) not in keys:
            found.require_usable([key])
            return key
    return None


def _short(key: bytes) -> bytes:
    """Return the key up to the first dot of its base name."""
    folder, slash, base = key.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def _label(file: BinaryIO, member: Member) -> int:
    text = os.pread(file.fileno(), min(member.size, _LONGEST_LABEL), member.offset)
    if member.size > _LONGEST_LABEL or not re.fullmatch(rb"\s*[+-]?\d{1,18}\s*", text):
        raise UnusableError(
            f"has {text[:20]!r} as label in {_text(member.name)}; a label is the number of a class, such as 7"
        )
    return int(text)


def _text(name: bytes) -> str:
    return name[:200].decode(errors="surrogateescape")
