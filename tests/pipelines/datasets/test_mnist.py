"""Files in the format of MNIST: what is read, and what the check and a start refuse."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import pipelines
from pipelines.common.errors import UserError
from pipelines.common.torchvision_ops import import_torchvision
from pipelines.datasets import mnist
from pipelines.datasets.mnist import MnistSettings
from tests.pipelines.pictures import put

TRAIN_LABELS, TRAIN_IMAGES = "train-labels-idx1-ubyte", "train-images-idx3-ubyte"


def idx(array: NDArray[np.uint8], kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The folder of the files."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, n in (("train", 50), ("t10k", 20)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(random.integers(0, 256, (n, 28, 28), dtype=np.uint8)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(random.integers(0, 10, n, dtype=np.uint8)))
    return folder


def settings(raw: Path, **options: object) -> MnistSettings:
    return MnistSettings.model_validate({"name": "mnist", "path": str(raw.parents[1]), "threads": 1, **options})


def test_arrays_are_those_of_torchvisions_reader(raw: Path) -> None:
    import_torchvision()
    from torchvision.datasets import MNIST

    for part, train in zip(mnist.load(settings(raw)), (True, False), strict=True):
        expected = MNIST(raw.parents[1], train=train)
        assert torch.equal(torch.from_numpy(part.images[..., 0]), expected.data)
        assert torch.equal(torch.from_numpy(part.labels), expected.targets)
        assert part.images.flags.writeable


LABELS = np.arange(50, dtype=np.uint8) % 10
IMAGES = np.zeros((50, 28, 28), dtype=np.uint8)
WRONG: dict[str, tuple[str, bytes, str]] = {
    "empty": (TRAIN_LABELS, b"", "it is no file of bytes in 1 dimensions"),
    "no idx": (TRAIN_IMAGES, b"no images at all", "it is no file of bytes in 3 dimensions"),
    "cut in the header": (TRAIN_IMAGES, idx(IMAGES)[:10], "it is no file of bytes in 3 dimensions"),
    "floats": (TRAIN_LABELS, idx(LABELS, kind=13), "it is no file of bytes in 1 dimensions"),
    "images as labels": (TRAIN_LABELS, idx(IMAGES), "it is no file of bytes in 1 dimensions"),
    "truncated": (TRAIN_IMAGES, idx(IMAGES)[:-1], "its header says 50 x 28 x 28, it has 39199 bytes"),
    "too long": (TRAIN_LABELS, idx(LABELS) + b"x", "its header says 50, it has 51 bytes"),
    "huge sizes": (
        TRAIN_IMAGES,
        struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3),
        "its header says 4294967295 x 42949",
    ),
    "too few labels": (TRAIN_LABELS, idx(LABELS[:49]), "it holds 49 labels, train-images-idx3-ubyte 50 images"),
    "another size": (TRAIN_IMAGES, idx(np.zeros((50, 32, 32), np.uint8)), "it holds 50 images of 32x32, not of 28x28"),
    "no images": (TRAIN_IMAGES, idx(IMAGES[:0]), "it holds 0 images of 28x28"),
    "label 10": (TRAIN_LABELS, idx(LABELS + 1), "it holds label 10, and labels go from 0 to 9"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_check_refuses_what_a_start_refuses(raw: Path, name: str) -> None:
    file, content, reason = WRONG[name]
    (raw / file).write_bytes(content)
    for act in acts(settings(raw)):
        with pytest.raises(UserError, match=rf"data\.path: MNIST in .*{file} cannot be read \({reason}"):
            act()


def acts(asked: MnistSettings) -> list[Callable[[], object]]:
    return [lambda: pipelines.check(asked), lambda: mnist.load(asked)]


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [("pipe", "is a pipe, not a file"), ("folder", "is a folder"), ("huge", "has 5,368,709,120 bytes, more than")],
)
def test_what_is_no_file_is_refused(raw: Path, kind: str, reason: str, download: bool) -> None:
    put(raw / TRAIN_LABELS, kind)
    asked = settings(raw, download=download)
    for act in [*acts(asked), lambda: pipelines.fetch(asked)]:
        with pytest.raises(UserError, match=rf"data\.path: .*{TRAIN_LABELS} cannot be read \({reason}"):
            act()


def test_what_old_torchvision_left_is_not_read_instead(raw: Path) -> None:
    """Files that it would read in place of those in raw."""
    (raw.parent / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.ones(3, 28, 28, dtype=torch.uint8), torch.ones(3)), raw.parent / "processed" / name)
    assert len(mnist.load(settings(raw))[0]) == 50
