"""Cost of a start that meets a hostile shard, index or list: seconds and memory, beside a start on ordinary ones.

    python -m benchmarks.hostile_shards            (2 minutes on 2 cores)
    python -m benchmarks.hostile_shards --only "a name of 100 GB"

Each case is a small data set with one thing amiss, trained on by `dist_train.py` in a process of its own. Seconds count
from the start of the process to its error, imports included; memory is the most that its processes hold.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.parts import hostile
from pipelines.sources.base import digest
from pipelines.sources.shard_index import INDEX_KIND, index_of

BLOCK = 512
GB = 1 << 30


def ordinary(root: Path) -> None:
    """Write 16 training and 8 validation samples of 4 classes, 16x16."""
    random = np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 8)):
        (root / part).mkdir(parents=True)
        with tarfile.open(root / part / "0.tar", "w") as tar:
            for i in range(count):
                image = io.BytesIO()
                Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(image, "PNG")
                for name, content in ((f"{i}.png", image.getvalue()), (f"{i}.cls", b"%d" % (i % 4))):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def header(name: bytes, size: int, kind: bytes) -> bytes:
    """Return the header of a tar's member, its size in binary, which has no bound."""
    block = bytearray(BLOCK)
    for at, field in ((0, name), (124, b"\x80" + size.to_bytes(11, "big")), (156, kind), (257, b"ustar\x0000")):
        block[at : at + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extension(content: bytes, kind: bytes) -> bytes:
    return header(b"@", len(content), kind) + content + bytes(-len(content) % BLOCK)


def hollow(path: Path, content: bytes, size: int = 100 * GB) -> None:
    """Write a sparse file: it says that it has so many bytes, and takes no room."""
    with path.open("wb") as file:
        file.write(content)
        file.truncate(size)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def crafted_index(shard: Path) -> None:
    """Write an index with a valid stamp and digest, and impossible samples."""
    stamp = shard.stat()
    head = np.array([2**40, 2**50, stamp.st_size, stamp.st_mtime_ns], dtype="<i8").tobytes()
    content = INDEX_KIND + head + bytes(1 << 20)
    index_of(shard).write_bytes(content + digest(content).encode())


def shard(first: bytes, repeated: int = 1) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        with (root / "train/0.tar").open("wb") as file:
            for _ in range(repeated):
                file.write(first)

    return spoil


Spoil = Callable[[Path], object]
CASES: dict[str, Spoil] = {
    "ordinary shards": lambda root: None,
    "a name of 100 GB": shard(header(b"@", 100 * GB, b"L")),
    "a name of 100 GB that is there": lambda root: hollow(root / "train/0.tar", header(b"@", 99 * GB, b"L")),
    "pax records of 100 GB that are there": lambda root: hollow(root / "train/0.tar", header(b"@", 99 * GB, b"x")),
    "a chain of 500,000 names": shard(extension(b"name\0", b"L"), 500_000),
    "a chain of 500,000 pax headers": shard(extension(b"9 path=a\n", b"x"), 500_000),
    "500,000 digits as a pax record": shard(extension(b"1" * 500_000, b"x")),
    "160,000 pax headers, 8 a member": shard(extension(b"9 path=a\n", b"x") * 8 + header(b"a", 0, b"0"), 20_000),
    "a member of 100 GB that is there": lambda root: hollow(root / "train/0.tar", header(b"a.png", 99 * GB, b"0")),
    "a hollow shard of 100 GB": lambda root: hollow(root / "train/0.tar", b""),
    "a pipe as shard": lambda root: pipe(root / "train/0.tar"),
    "a pipe as index": lambda root: pipe(root / "train/0.tar.index"),
    "a hollow index of 100 GB": lambda root: hollow(root / "train/0.tar.index", INDEX_KIND),
    "an index of 2^40 samples": lambda root: crafted_index(root / "train/0.tar"),
    "a hollow list of classes of 100 GB": lambda root: hollow(root / "classes.txt", b""),
    "a list of 16 million classes": lambda root: (root / "classes.txt").write_bytes(b"abc\n" * (16 << 20)),
    "a hollow list of names to leave out of 100 GB": lambda root: hollow(root / "exclude.txt", b""),
    "a list of 16 million names to leave out": lambda root: (root / "exclude.txt").write_bytes(b"a/b\n" * (16 << 20)),
}  # fmt: skip


def prepare(case: str, folder: Path) -> list[str]:
    root = folder / "data"
    ordinary(root)
    CASES[case](root)
    data = f"{{name: webdataset, path: {root}, number_of_classes: 4, image_size: 16, evaluation_resize: 16"
    data += f", exclude: {root}/exclude.txt}}" if (root / "exclude.txt").exists() else "}"
    command = [sys.executable, "dist_train.py", "--config", "configs/synthetic_cnn.yaml", f"data={data}"]
    return [*command, f"runs={folder}/runs", "train.epochs=1", "train.global_batch_size=8", "method.stop_epoch=1"]


def main() -> None:
    hostile.run("hostile_shards", __doc__, CASES, prepare)


if __name__ == "__main__":
    main()
