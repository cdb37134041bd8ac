"""ImageNet's devkit: which classes there are, and which of them each validation image shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import BinaryIO

from pipelines.common.files import naming
from pipelines.sources.tar_headers import Member, UnusableError, members
from pipelines.tools.prepare.packed import content_of, decompressed, told
from pipelines.tools.prepare.synsets import Synset, read_synsets

MOST_UNPACKED = 256 << 20
"""Bytes of the whole devkit. The official one is far smaller."""
MOST_FILE = 16 << 20
"""Bytes of a file that is read of it."""
_META, _TRUTH = b"data/meta.mat", b"data/ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class Devkit:
    """Facts that the devkit holds."""

    synsets: dict[str, Synset]
    """Classes by WNID."""
    labels: tuple[str, ...]
    """WNID of each validation image: the first is that of ILSVRC2012_val_00000001.JPEG."""

    def label(self, number: int) -> str:
        """Return the WNID of a validation image, by its number from 1."""
        return self.labels[number - 1]


def read(path: Path) -> Devkit:
    """Read the devkit. Raises UserError."""
    with told(path), naming(gettempdir()), TemporaryFile() as file:
        file.writelines(decompressed(path, MOST_UNPACKED))
        file.flush()
        found = _found(file)
        synsets = read_synsets(_content(file, found, _META))
        by_number = {synset.number: synset.wnid for synset in synsets}
        labels = _labels(_content(file, found, _TRUTH), by_number)
    return Devkit({synset.wnid: synset for synset in synsets}, labels)


def _found(file: BinaryIO) -> dict[bytes, list[Member]]:
    """Return the members by their last two names: the devkit is in a folder, whatever its name."""
    found: dict[bytes, list[Member]] = {}
    for member in members(file):
        found.setdefault(b"/".join(member.name.split(b"/")[-2:]), []).append(member)
    return found


def _content(file: BinaryIO, found: dict[bytes, list[Member]], name: bytes) -> bytes:
    there = found.get(name, [])
    if len(there) != 1 or not there[0].is_regular or there[0].size > MOST_FILE:
        state = "no" if not there else "more than one" if len(there) > 1 else "as a link, or too large,"
        raise UnusableError(f"has {state} {name.decode()}; fetch ILSVRC2012_devkit_t12.tar.gz anew")
    return content_of(file, there[0])


def _labels(content: bytes, by_number: dict[int, str]) -> tuple[str, ...]:
    lines = content.split()
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch(rb"\d{1,4}", line) or int(line) not in by_number:
            raise UnusableError(
                f"has {line[:20]!r} as the class of validation image {number}, where data/meta.mat knows the numbers "
                f"{min(by_number)} to {max(by_number)}; fetch it anew"
            )
    if not lines:
        raise UnusableError(f"has an empty {_TRUTH.decode()}; fetch it anew")
    return tuple(by_number[int(line)] for line in lines)
