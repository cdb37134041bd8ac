"""MNIST from its four files, as .gz or unpacked: MNIST/raw, as torchvision would fetch and unpack them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from pipelines.common.files import read_bytes
from pipelines.sources.official_files import LARGEST
from pipelines.tools.prepare.packed import decompressed, is_official, require_content, require_there
from pipelines.tools.prepare.place import held
from pipelines.tools.prepare.room import require_room

PACKED = ".gz"
FOLDER = ("MNIST", "raw")
NEEDED = 55_000_000
"""Bytes on the disk."""
UNPACKED = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""MD5 of each unpacked file. What it is packed in may differ: mirrors pack anew."""


def prepare(archives: Path, out: Path) -> str:
    """Unpack the files, and return what to tell. Raises UserError."""
    raw = out.joinpath(*FOLDER)
    said = f"train on it with data.name=mnist {shlex.quote(f'data.path={out}')}"
    missing = {name: md5 for name, md5 in UNPACKED.items() if not is_official(raw / name, md5)}
    if not missing:
        return f"{out}: complete already; {said}"
    sources = {name: _source(archives, name) for name in missing}
    require_there(archives, [path.name for path in sources.values()])
    for name, path in sources.items():
        require_content(path, _content(path), UNPACKED[name])
    require_room(out, NEEDED)
    with held(out) as place:
        place.folder(*FOLDER)
        for name, path in sources.items():
            place.write(raw / name, _content(path))
    return f"{out}: {len(UNPACKED)} files in {'/'.join(FOLDER)}; {said}"


def _source(archives: Path, name: str) -> Path:
    """Return the file to read: packed, unless it is there unpacked alone."""
    packed = archives / (name + PACKED)
    return archives / name if os.path.exists(archives / name) and not os.path.exists(packed) else packed


def _content(path: Path) -> Iterator[bytes]:
    if path.suffix != PACKED:
        yield read_bytes(path, LARGEST)
        return
    yield from decompressed(path, LARGEST)
