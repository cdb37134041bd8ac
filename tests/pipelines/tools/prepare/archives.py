"""Small archives in the formats of the real ones."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from pipelines.__main__ import PROGRAM
from pipelines.common.errors import EXIT_DONE
from tests.pipelines.pictures import picture

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
WNIDS = ("n03000003", "n01000001", "n02000002")
"""Classes by number in the devkit, from 1: there the numbers do not follow the names."""
EACH = 4
LABELS = (2, 3, 1, 1, 3, 2)
"""Numbers of the classes of the validation images."""
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"

Files = Mapping[str, bytes]
Special = tuple[str, bytes, str]
"""Name, kind and target of a member that is no file."""


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    picture(30 + seed % 7, 24, seed).save(file, "JPEG")
    return file.getvalue()


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((9, 9, 3), seed, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def tar(files: Iterable[tuple[str, bytes]], special: Iterable[Special] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as made:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
        for name, kind, target in special:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            made.addfile(member)
    return buffer.getvalue()


def training() -> dict[str, dict[str, bytes]]:
    """Images by name, by WNID."""
    return {
        wnid: {f"{wnid}_{10 * i + 7}.JPEG": jpeg(100 * number + i) for i in range(EACH)}
        for number, wnid in enumerate(WNIDS)
    }


def validation() -> dict[str, bytes]:
    """Images by name. One is a PNG, as one of ImageNet's is."""
    images = {f"ILSVRC2012_val_{n:08}.JPEG": jpeg(1000 + n) for n in range(1, len(LABELS) + 1)}
    return {**images, "ILSVRC2012_val_00000003.JPEG": png(3)}


def meta(rows: Iterable[tuple[int, str, int]] | None = None) -> bytes:
    """A meta.mat as in the devkit: number, WNID and number of training images a class, groups of classes behind."""
    if rows is None:
        rows = [(number, wnid, EACH) for number, wnid in enumerate(WNIDS, start=1)]
    names = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    made = [(float(n), wnid, f"word {n}", "a gloss", 0.0, np.zeros(0), 0.0, float(images)) for n, wnid, images in rows]
    groups = [(1001.0, "n00001740", "entity", "all", 2.0, np.array([1.0, 2.0]), 3.0, 0.0)]
    table = np.empty((len(made) + 1, 1), dtype=[(name, object) for name in (*names, "num_train_images")])
    for at, row in enumerate([*made, *groups]):
        table[at, 0] = row
    file = io.BytesIO()
    savemat(file, {"synsets": table}, do_compression=True)
    return file.getvalue()


def devkit(files: Files | None = None, special: Iterable[Special] = ()) -> bytes:
    there = {META: meta(), TRUTH: "".join(f"{n}\n" for n in LABELS).encode(), "readme.txt": b"Read me."}
    changed = {**there, **(files or {})}
    folder = "ILSVRC2012_devkit_t12"
    return gzip.compress(tar(((f"{folder}/{name}", content) for name, content in changed.items()), special), 1)


def training_tar(images: Mapping[str, Files]) -> bytes:
    return tar((f"{wnid}.tar", tar(files.items())) for wnid, files in images.items())


def write(folder: Path, **contents: bytes) -> Path:
    """Write archives, those that are not given as they should be."""
    folder.mkdir(exist_ok=True)
    (folder / TRAIN).write_bytes(contents.get("train", b"") or training_tar(training()))
    (folder / VAL).write_bytes(contents.get("val", b"") or tar(validation().items()))
    (folder / DEVKIT).write_bytes(contents.get("devkit", b"") or devkit())
    return folder


def expected() -> dict[str, bytes]:
    """The files that must be made, by path."""
    train = {f"train/{wnid}/{name}": content for wnid, files in training().items() for name, content in files.items()}
    val = zip(validation().items(), LABELS, strict=True)
    return {**train, **{f"val/{WNIDS[label - 1]}/{name}": content for (name, content), label in val}}


def tree(folder: Path) -> dict[str, bytes]:
    """Contents of all files in a folder, by path; a link's is where it leads."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        for path in paths
    }


def run(*words: object) -> int:
    return PROGRAM.run(["prepare", *map(str, words)])


def done(*words: object) -> None:
    assert run(*words) == EXIT_DONE
