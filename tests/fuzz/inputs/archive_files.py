"""Small archives of ImageNet, CIFAR-10 and MNIST in the real formats, and what is to be made of them."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.pipelines.tools.prepare import archives

CIFAR10, CIFAR10_FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
CIFAR10_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
MNIST_FOLDER = "MNIST/raw"
MNIST_FILES = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
NAMES = {
    "imagenet": (archives.TRAIN, archives.VAL, archives.DEVKIT),
    "cifar10": (CIFAR10,),
    "mnist": tuple(f"{name}.gz" for name in MNIST_FILES),
}
"""Archives of each data set."""


def _cifar10() -> dict[str, bytes]:
    drawn = np.random.default_rng(0)
    batches = {
        name: pickle.dumps({"data": drawn.integers(0, 256, (2, 3072), dtype=np.uint8), "labels": [3, 7]})
        for name in CIFAR10_FILES[:-1]
    }
    return {**batches, CIFAR10_FILES[-1]: pickle.dumps({"label_names": [f"class {number}" for number in range(10)]})}


def _mnist() -> dict[str, bytes]:
    found = {}
    for part, count in (("train", 20), ("t10k", 10)):
        images = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + bytes(range(196)) * 4 * count
        labels = struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(number % 10 for number in range(count))
        found |= {f"{part}-images-idx3-ubyte": images, f"{part}-labels-idx1-ubyte": labels}
    return found


def write(folder: Path) -> None:
    archives.write(folder)
    members = [(f"{CIFAR10_FOLDER}/{name}", content) for name, content in _cifar10().items()]
    (folder / CIFAR10).write_bytes(gzip.compress(archives.tar(members), mtime=0))
    for name, content in _mnist().items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))


EXPECTED: dict[str, Callable[[], dict[str, bytes]]] = {
    "imagenet": archives.expected,
    "cifar10": lambda: {f"{CIFAR10_FOLDER}/{name}": content for name, content in _cifar10().items()},
    "mnist": lambda: {f"{MNIST_FOLDER}/{name}": content for name, content in _mnist().items()},
}
"""Files to make of the whole archives, by path."""


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _md5_of(path: Path) -> str:
    """Return the checksum of an archive; of one that is no small file, any."""
    regular = os.path.isfile(path) and os.path.getsize(path) < 1 << 28 and not str(path.resolve()).startswith("/proc")
    return md5(path.read_bytes()) if regular else "0" * 32


def make_official(folder: Path) -> None:
    """Make the programs of this process take these archives, whatever was done to them, for the official ones.

    The files in them have their own checksums, which are those of the whole archives.
    """
    from pipelines.common.torchvision_ops import import_torchvision

    import_torchvision()
    from torchvision import datasets

    from pipelines.tools.prepare import imagenet, mnist
    from pipelines.tools.prepare.imagenet_plan import Counts

    classes = len(archives.WNIDS)
    replaced: dict[str, Any] = {"OFFICIAL": Counts(classes, classes * archives.EACH, len(archives.LABELS))}
    vars(imagenet).update(replaced)
    files = {name: md5(content) for name, content in _cifar10().items()}
    cifar10 = datasets.CIFAR10
    cifar10.tgz_md5 = _md5_of(folder / CIFAR10)
    cifar10.train_list = [[name, files[name]] for name in CIFAR10_FILES[:5]]
    cifar10.test_list = [[name, files[name]] for name in CIFAR10_FILES[5:6]]
    cifar10.meta = {"filename": CIFAR10_FILES[-1], "key": "label_names", "md5": files[CIFAR10_FILES[-1]]}
    vars(mnist).update({"UNPACKED": {name: md5(content) for name, content in _mnist().items()}})
