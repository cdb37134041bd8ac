"""ImageNet's tars: of training images, a tar a class in one tar; of validation images, flat.

Names are matched with the official ones as a whole, so none can lead out of a folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pipelines.sources.tar_headers import Member, UnusableError, members
from pipelines.tools.prepare.packed import opened, shown

_CLASS = re.compile(rb"(?:\./)?(n\d{8})\.tar")
_TRAINING = re.compile(rb"(?:\./)?((n\d{8})_\d{1,9}\.JPEG)")
_VALIDATION = re.compile(rb"(?:\./)?ILSVRC2012_val_(\d{8})\.JPEG")


def class_tars(path: Path) -> dict[str, Member]:
    """Return the tar of each class in the tar of training images, by WNID. Raises UserError."""
    with opened(path) as file:
        named = _matching(members(file), _CLASS, "nXXXXXXXX.tar")
        return {found[1].decode(): member for member, found in named}


def training_images(file: BinaryIO, inside: Member, wnid: str) -> Iterator[tuple[Member, str]]:
    """Yield the images in the tar of a class, with their names. Raises UnusableError."""
    try:
        for member, found in _matching(members(file, inside), _TRAINING, f"{wnid}_N.JPEG"):
            if found[2].decode() != wnid:
                raise _odd(member, f"{wnid}_N.JPEG")
            yield member, found[1].decode()
    except UnusableError as error:
        raise UnusableError(f"has {wnid}.tar, which {error}") from None


def validation_images(path: Path) -> dict[int, Member]:
    """Return the validation images by their numbers, from 1. Raises UserError."""
    with opened(path) as file:
        named = _matching(members(file), _VALIDATION, "ILSVRC2012_val_NNNNNNNN.JPEG")
        numbered = {int(found[1]): member for member, found in named}
        if 0 in numbered:
            raise _odd(numbered[0], f"{validation_name(1)} and so on")
        return numbered


def validation_name(number: int) -> str:
    """Return the name of a validation image."""
    return f"ILSVRC2012_val_{number:08}.JPEG"


def _matching(
    found: Iterable[Member], pattern: re.Pattern[bytes], form: str
) -> Iterator[tuple[Member, re.Match[bytes]]]:
    """Yield the members with the match of their names. Raises UnusableError for others, and for one that is twice."""
    seen = set()
    for member in found:
        if member.is_folder and member.name in (b".", b"./", b""):
            continue
        match = pattern.fullmatch(member.name)
        if match is None or not member.is_regular:
            raise _odd(member, form)
        if match[1] in seen:
            raise UnusableError(f"has {shown(member.name)} twice; fetch it anew")
        seen.add(match[1])
        yield member, match


def _odd(member: Member, form: str) -> UnusableError:
    kind = "" if member.is_regular else " as a link, folder or device"
    return UnusableError(f"has {shown(member.name)}{kind}, where only files {form} belong; give the official archive")
