"""CIFAR-10 from cifar-10-python.tar.gz: cifar-10-batches-py, as torchvision would fetch and unpack it.

The files are pickles. So nothing of the archive is opened unless its MD5, and that of each file, is the official one.
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import BinaryIO

from pipelines.common.files import naming
from pipelines.sources.tar_headers import UnusableError, members
from pipelines.tools.prepare.packed import (
    content_of,
    decompressed,
    is_official,
    require_official,
    require_there,
    told,
)
from pipelines.tools.prepare.place import Place, held
from pipelines.tools.prepare.room import require_room

MOST_UNPACKED = 512 << 20
"""Bytes. The official archive has 186 MB."""
NEEDED = 372_000_000
"""Bytes on the disk: the unpacked archive, and the files."""


def prepare(archives: Path, out: Path) -> str:
    """Unpack the files, and return what to tell. Raises UserError."""
    name, md5, folder, files = official()
    said = f"train on it with data.name=cifar10 {shlex.quote(f'data.path={out}')}"
    if all(is_official(out / folder / file, expected) for file, expected in files.items()):
        return f"{out}: complete already; {said}"
    require_there(archives, [name])
    require_official(archives / name, md5)
    require_room(out, NEEDED)
    with held(out) as place:
        _unpack(archives / name, place, folder, files)
    return f"{out}: {len(files)} files in {folder}; {said}"


def official() -> tuple[str, str, str, dict[str, str]]:
    """Return name and MD5 of the archive, the folder in it, and the MD5 of each file, as torchvision knows them."""
    from pipelines.common.torchvision_ops import import_torchvision  # Only here: it imports torch, which takes seconds.

    import_torchvision()
    from torchvision.datasets import CIFAR10

    files = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
    return CIFAR10.filename, CIFAR10.tgz_md5, CIFAR10.base_folder, files


def _unpack(archive: Path, place: Place, folder: str, files: dict[str, str]) -> None:
    draft = place.drafts / "unpacked"
    with told(archive), naming(draft), open(draft, "w+b") as file:
        file.writelines(decompressed(archive, MOST_UNPACKED))
        file.flush()
        target = place.folder(folder)
        for name, content in _contents(file, folder, files).items():
            place.write(target / name, [content])


def _contents(file: BinaryIO, folder: str, files: dict[str, str]) -> dict[str, bytes]:
    """Return the content of each file. Raises UnusableError if one is absent, or not the official one."""
    there = {member.name: member for member in members(file) if member.is_regular}
    found = {}
    for name, md5 in files.items():
        if (member := there.get(f"{folder}/{name}".encode())) is None:
            raise UnusableError(f"lacks {folder}/{name}; fetch it anew")
        found[name] = content_of(file, member)
        if hashlib.md5(found[name], usedforsecurity=False).hexdigest() != md5:
            raise UnusableError(f"has a {folder}/{name} that is not the official one; fetch it anew")
    return found
