"""Damaged and hostile archives of ImageNet: one line each, and nothing outside the folder to fill."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipelines.common.errors import EXIT_BAD_INPUT
from pipelines.sources.parts import UNFINISHED
from pipelines.tools.prepare import imagenet, imagenet_devkit, synsets
from pipelines.tools.prepare.imagenet_plan import Counts
from tests import forks  # noqa: F401 - its server starts processes in milliseconds
from tests.pipelines.pictures import put
from tests.pipelines.tools.prepare import archives as made
from tests.pipelines.tools.prepare.archives import DEVKIT, META, TRAIN, TRUTH, VAL, WNIDS, run, tree

FIRST = WNIDS[1]
"""The class that is first by name."""
TARS = {wnid: made.tar(files.items()) for wnid, files in made.training().items()}
IMAGES = made.training()[FIRST]
OFFICIAL_NAMES = "belong; give the official archive"


def outer(*more: tuple[str, bytes], special: tuple[made.Special, ...] = (), **changed: bytes) -> bytes:
    """The tar of training images, with other members behind, or another tar of a class."""
    return made.tar([*((f"{wnid}.tar", content) for wnid, content in {**TARS, **changed}.items()), *more], special)


def inner(*more: tuple[str, bytes], special: tuple[made.Special, ...] = ()) -> bytes:
    """The tar of training images with other members in the tar of one class."""
    return outer(**{FIRST: made.tar([*IMAGES.items(), *more], special)})


ONLY_TARS = f"where only files nXXXXXXXX.tar {OFFICIAL_NAMES}"
ONLY_IMAGES = f"where only files {FIRST}_N.JPEG {OFFICIAL_NAMES}"
KIND = " as a link, folder or device"
TRAINING: dict[str, tuple[bytes, str]] = {
    "absolute": (outer(("/tmp/n00000001.tar", b"")), f"has /tmp/n00000001.tar, {ONLY_TARS}"),
    "above": (outer(("../n00000001.tar", b"")), f"has ../n00000001.tar, {ONLY_TARS}"),
    "a link": (outer(special=(("n00000001.tar", tarfile.SYMTYPE, "/etc"),)), f"has n00000001.tar{KIND}, {ONLY_TARS}"),
    "a hard link": (outer(special=(("n00000001.tar", tarfile.LNKTYPE, "x"),)), f"has n00000001.tar{KIND}, {ONLY_TARS}"),
    "a device": (outer(special=(("n00000001.tar", tarfile.CHRTYPE, ""),)), f"has n00000001.tar{KIND}, {ONLY_TARS}"),
    "a folder": (outer(special=((f"{FIRST}", tarfile.DIRTYPE, ""),)), f"has {FIRST}{KIND}, {ONLY_TARS}"),
    "a line end": (outer(("n00000001.tar\nok", b"")), f"has n00000001.tar\\nok, {ONLY_TARS}"),
    "a class twice": (outer((f"{FIRST}.tar", b"")), f"has {FIRST}.tar twice; fetch it anew"),
    "an unknown class": (
        outer(("n99999999.tar", made.tar([]))),
        "has 1 classes that the devkit does not know, such as n99999999; give the archives of one ImageNet, ILSVRC2012",
    ),
    "truncated": (outer()[:20_000], f"is truncated: it ends at byte 20000, within {FIRST}.tar; copy it anew"),
    "no tar": (b"\xff\xd8\xff" * 400, "is no tar, or damaged after byte 0 (no right checksum); copy it anew"),
    "gzip": (gzip.compress(outer()), "is compressed (gzip), samples are read by their place; decompress it"),
    "nothing": (b"\n", "is no tar, or damaged after byte 0 (no whole header); copy it anew"),
    "an absolute image": (inner((f"/tmp/{FIRST}_1.JPEG", b"")), f"has {FIRST}.tar, which has /tmp/{FIRST}_1.JPEG, "),
    "an image above": (inner((f"../{FIRST}_1.JPEG", b"")), f"has {FIRST}.tar, which has ../{FIRST}_1.JPEG, "),
    "an image as a link": (
        inner(special=((f"{FIRST}_1.JPEG", tarfile.SYMTYPE, "/etc/passwd"),)),
        f"has {FIRST}.tar, which has {FIRST}_1.JPEG{KIND}, {ONLY_IMAGES}",
    ),
    "an image twice": (inner(next(iter(IMAGES.items()))), f"has {FIRST}.tar, which has {next(iter(IMAGES))} twice"),
    "another class's image": (
        inner((f"{WNIDS[0]}_1.JPEG", b"")),
        f"has {FIRST}.tar, which has {WNIDS[0]}_1.JPEG, {ONLY_IMAGES}",
    ),
    "a truncated class": (
        outer(**{FIRST: TARS[FIRST][:1000]}),
        f"has {FIRST}.tar, which is truncated: it ends at byte 1000, within {FIRST}_",
    ),
    "a class that reaches into the next": (
        outer(**{FIRST: TARS[FIRST][:1536]}),
        f"has {FIRST}.tar, which is truncated: it ends at byte 1536, ",
    ),
    "no tar of a class": (outer(**{FIRST: b"nothing" * 200}), f"has {FIRST}.tar, which is no tar, or damaged after "),
    "an empty class": (outer(**{FIRST: made.tar([])}), f"the archive has no image of {FIRST}; leave it out by "),
    "no image": (
        inner((f"{FIRST}_1.JPEG", b"GIF89a no image")),
        f": {FIRST}_1.JPEG is no image of a known format, or its header is damaged; copy the archive anew",
    ),
    "an empty image": (inner((f"{FIRST}_1.JPEG", b"")), f": {FIRST}_1.JPEG is no image of a known format"),
    "a large one": (inner((f"{FIRST}_1.JPEG", bytes(1 << 18))), f": {FIRST}_1.JPEG is no image of a known format"),
}
ONLY_VAL = f"where only files ILSVRC2012_val_NNNNNNNN.JPEG {OFFICIAL_NAMES}"


def flat(*more: tuple[str, bytes], special: tuple[made.Special, ...] = ()) -> bytes:
    return made.tar([*made.validation().items(), *more], special)


VALIDATION: dict[str, tuple[bytes, str]] = {
    "others": (flat(("ILSVRC2012_test_00000001.JPEG", b"")), f"has ILSVRC2012_test_00000001.JPEG, {ONLY_VAL}"),
    "above": (flat(("../ILSVRC2012_val_00000009.JPEG", b"")), f"has ../ILSVRC2012_val_00000009.JPEG, {ONLY_VAL}"),
    "a link": (
        flat(special=(("ILSVRC2012_val_00000009.JPEG", tarfile.SYMTYPE, "/etc/passwd"),)),
        f"has ILSVRC2012_val_00000009.JPEG{KIND}, {ONLY_VAL}",
    ),
    "number 0": (flat(("ILSVRC2012_val_00000000.JPEG", b"")), "has ILSVRC2012_val_00000000.JPEG, where only files "),
    "a number without a label": (
        flat(("ILSVRC2012_val_00000007.JPEG", made.jpeg(1))),
        "has ILSVRC2012_val_00000007.JPEG, and the devkit has labels for 6 images; give the official archives",
    ),
    "twice": (flat(("ILSVRC2012_val_00000002.JPEG", b"")), "has ILSVRC2012_val_00000002.JPEG twice; fetch it anew"),
    "truncated": (flat()[:5000], "is truncated: it ends at byte 5000, within ILSVRC2012_val_"),
    "no image": (
        made.tar({**made.validation(), "ILSVRC2012_val_00000001.JPEG": b"<html>no image</html>"}.items()),
        ": ILSVRC2012_val_00000001.JPEG is no image of a known format, or its header is damaged; copy the archive anew",
    ),
}


def nested(depth: int) -> bytes:
    """A meta.mat of cells in cells, deeper than any stack: each has flags, a shape, a name and the next."""
    flags = np.array([6, 8, 1, 0], "<u4").tobytes()
    shape = np.array([5, 8, 1, 1], "<u4").tobytes()
    name = np.array([1, 7], "<u4").tobytes() + b"synsets\0"
    empty = np.array([1, 0], "<u4").tobytes()
    heads = []
    size = 0
    for level in range(depth):
        label = name if level == depth - 1 else empty
        size += len(flags) + len(shape) + len(label)
        heads.append(np.array([14, size], "<u4").tobytes() + flags + shape + label)
        size += 8
    return mat_head() + b"".join(reversed(heads))


def mat_head() -> bytes:
    file = io.BytesIO()
    savemat(file, {"a": 1})
    return file.getvalue()[:128]


def bomb() -> bytes:
    """A matrix of more than a gigabyte, all zeros, in a few megabytes."""
    size = 5 << 28
    head = np.array([14, size + 56, 6, 8, 6, 0, 5, 8, size // 8, 1, 1, 7], "<u4").tobytes() + b"synsets\0"
    data = np.array([9, size], "<u4").tobytes()
    packer = zlib.compressobj(1)
    parts = [packer.compress(head + data), *(packer.compress(bytes(1 << 24)) for _ in range(size >> 24))]
    packed = b"".join([*parts, packer.flush()])
    return mat_head() + np.array([15, len(packed)], "<u4").tobytes() + packed


def other(**variables: object) -> bytes:
    file = io.BytesIO()
    savemat(file, variables)
    return file.getvalue()


def rows(*more: tuple[int, str, int]) -> bytes:
    return made.meta([*((n, wnid, 4) for n, wnid in enumerate(WNIDS, start=1)), *more])


UNUSABLE = "has a data/meta.mat that cannot be used ("
DEVKITS: dict[str, tuple[Callable[[], bytes], str]] = {
    "no gzip": (lambda: b"no gzip at all", "is no gzip file, or damaged; fetch it anew"),
    "empty": (lambda: b"\n", "is no gzip file, or damaged; fetch it anew"),
    "truncated": (lambda: made.devkit()[:-100], "is truncated or damaged: it cannot be decompressed; fetch it anew"),
    "changed": (lambda: made.devkit()[:-8] + bytes(8), "is no gzip file, or damaged; fetch it anew"),
    "a bomb": (
        lambda: gzip.compress(bytes(imagenet_devkit.MOST_UNPACKED + 1), 1),
        "has more than 268,435,456 bytes when it is decompressed; fetch it anew",
    ),
    "no tar": (lambda: gzip.compress(b"no tar" * 200), "is no tar, or damaged after byte 0 (no right checksum)"),
    "no meta": (
        lambda: gzip.compress(made.tar([(f"x/{TRUTH}", b"1\n")])),
        "has no data/meta.mat; fetch ILSVRC2012_devkit_t12.tar.gz anew",
    ),
    "meta twice": (lambda: made.devkit({f"again/{META}": b"x"}), "has more than one data/meta.mat; fetch "),
    "meta as a link": (
        lambda: gzip.compress(made.tar([(f"x/{TRUTH}", b"1\n")], [(f"x/{META}", tarfile.SYMTYPE, "/etc/passwd")])),
        "has as a link, or too large, data/meta.mat; fetch ",
    ),
    "a large meta": (
        lambda: made.devkit({META: bytes(imagenet_devkit.MOST_FILE + 1)}),
        "has as a link, or too large, data/meta.mat; fetch ",
    ),
    "no mat": (lambda: made.devkit({META: b"not MATLAB's" * 40}), UNUSABLE),
    "an empty mat": (lambda: made.devkit({META: b""}), UNUSABLE),
    "no synsets": (lambda: made.devkit({META: other(a=1)}), f"{UNUSABLE}KeyError: 'synsets'); fetch it anew"),
    "synsets of numbers": (lambda: made.devkit({META: other(synsets=[1, 2])}), UNUSABLE),
    "other fields": (lambda: made.devkit({META: other(synsets={"WNID": "n01000001"})}), UNUSABLE),
    "nested without end": (
        lambda: made.devkit({META: nested(200_000)}),
        f"{UNUSABLE}it ends the process that reads it); fetch it anew",
    ),
    "more than memory": (
        lambda: made.devkit({META: bomb()}),
        f"{UNUSABLE}it takes more than 1,024 MiB of memory); fetch it anew",
    ),
    "a damaged mat": (lambda: made.devkit({META: made.meta()[:-40]}), UNUSABLE),
    "a path as WNID": (
        lambda: made.devkit({META: rows((4, "../../../x", 4))}),
        f"{UNUSABLE}it has the class 4 with the WNID '../../../x'); fetch it anew",
    ),
    "number 0": (
        lambda: made.devkit({META: rows((0, "n04000004", 4))}),
        f"{UNUSABLE}it has the class 0 with the WNID 'n04000004'); fetch it anew",
    ),
    "a number twice": (
        lambda: made.devkit({META: rows((3, "n04000004", 4))}),
        f"{UNUSABLE}it has no classes, or one twice); fetch it anew",
    ),
    "only groups": (lambda: made.devkit({META: made.meta([])}), f"{UNUSABLE}it has no classes, or one twice); "),
    "a label that is no number": (
        lambda: made.devkit({TRUTH: b"1\nape\n"}),
        "has b'ape' as the class of validation image 2, where data/meta.mat knows the numbers 1 to 3; fetch it anew",
    ),
    "an unknown label": (lambda: made.devkit({TRUTH: b"1001\n"}), "has b'1001' as the class of validation image 1, "),
    "no labels": (lambda: made.devkit({TRUTH: b""}), f"has an empty {TRUTH}; fetch it anew"),
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "OFFICIAL", Counts(classes=3, train=12, val=6))


def assert_refused(folder: Path, archive: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Require one line that has the reason, and beside the archives only what is marked as incomplete."""
    before, out = tree(folder), folder.parent / "made"
    assert run("imagenet", "--archives", folder, "--out", out) == EXIT_BAD_INPUT
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("prepare: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert archive in lines[0] or "the archive" in lines[0]
    assert reason in lines[0]
    assert tree(folder) == before
    assert {path.name for path in folder.parent.iterdir()} <= {folder.name, "made"}
    assert not out.exists() or (out / UNFINISHED).is_dir()
    assert all(path.startswith(("train/n0", "val/n0", f"{UNFINISHED}/")) for path in tree(out))
    assert not any(path.is_symlink() for path in out.rglob("*"))


@pytest.mark.parametrize("kind", TRAINING)
def test_training_images(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, reason = TRAINING[kind]
    assert_refused(made.write(tmp_path / "archives", train=content), TRAIN, reason, capsys)


@pytest.mark.parametrize("kind", VALIDATION)
def test_validation_images(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, reason = VALIDATION[kind]
    assert_refused(made.write(tmp_path / "archives", val=content), VAL, reason, capsys)


@pytest.mark.parametrize("kind", DEVKITS)
def test_devkits(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, reason = DEVKITS[kind]
    assert_refused(made.write(tmp_path / "archives", devkit=make()), DEVKIT, reason, capsys)


@pytest.mark.parametrize("archive", [TRAIN, VAL, DEVKIT])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file(tmp_path: Path, archive: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made.write(tmp_path / "archives")
    put(folder / archive, kind)
    out = tmp_path / "made"
    assert run("imagenet", "--archives", folder, "--out", out) == EXIT_BAD_INPUT
    assert f"error: {folder / archive} cannot be read (is a " in capsys.readouterr().err
    assert not out.exists()


def test_a_devkit_with_a_hole_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Zeros may follow a gzip file: of a hole of 120 GB, all would be read."""
    folder = made.write(tmp_path / "archives")
    os.truncate(folder / DEVKIT, 120 * 10**9)
    assert run("imagenet", "--archives", folder, "--out", tmp_path / "made") == EXIT_BAD_INPUT
    rule = "has 120,000,000,000 bytes, more than 268,435,456; fetch it anew"
    assert capsys.readouterr().err == f"error: {folder / DEVKIT} {rule}\n"


def test_a_full_disk_for_temporary_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(imagenet_devkit, "TemporaryFile", lambda: open("/dev/full", "wb"))  # noqa: SIM115
    folder = made.write(tmp_path / "archives")
    assert run("imagenet", "--archives", folder, "--out", tmp_path / "made") == EXIT_BAD_INPUT
    rule = "No space left on device; make it readable, or room to write"
    assert capsys.readouterr().err == f"error: {tempfile.gettempdir()}: {rule}\n"


def test_groups_of_classes_are_no_classes() -> None:
    """The file is read in a process of its own: the memory of this one must not be bounded."""
    found = synsets.read_synsets(made.meta())
    assert [(synset.number, synset.wnid, synset.images) for synset in found] == [
        (number, wnid, made.EACH) for number, wnid in enumerate(WNIDS, start=1)
    ]
