"""CIFAR-10 and MNIST from their archives, in small files of the real formats."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import pickle
import resource
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pipelines
from pipelines.common.errors import EXIT_BAD_INPUT
from pipelines.common.torchvision_ops import import_torchvision
from pipelines.datasets import cifar10 as cifar10_data
from pipelines.datasets import mnist as mnist_data
from pipelines.datasets.cifar10 import Cifar10Settings
from pipelines.datasets.mnist import MnistSettings
from pipelines.sources.parts import UNFINISHED
from pipelines.tools.prepare import cifar10, mnist, packed
from tests.pipelines.pictures import put
from tests.pipelines.tools.prepare.archives import done, run, tar, tree
from tests.training import runs

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "archives").mkdir()
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "made"


def test_the_official_checksums() -> None:
    """Torchvision fetches by these."""
    name, archive_md5, base, files = cifar10.official()
    assert (name, archive_md5, base) == (ARCHIVE, "c58f30108f718f92721af3b95e74349a", FOLDER)
    assert sorted(files) == ["batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Files of two images each; torchvision takes them for the official ones."""
    import_torchvision()
    from torchvision.datasets import CIFAR10

    random = np.random.default_rng(0)
    files = {"batches.meta": pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = random.integers(0, 256, (2, 3072), dtype=np.uint8)
        files[name] = pickle.dumps({"data": pixels, "labels": [3, 7]})
    lists = {"train_list": [f"data_batch_{i}" for i in range(1, 6)], "test_list": ["test_batch"]}
    for kind, names in lists.items():
        monkeypatch.setattr(CIFAR10, kind, [[name, md5(files[name])] for name in names])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(files["batches.meta"])}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return files


def cifar10_archive(folder: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, **more: object) -> Path:
    """Write an archive, the official one to torchvision."""
    from torchvision.datasets import CIFAR10

    content = more.get("content") or gzip.compress(
        tar([(f"{FOLDER}/{name}", file) for name, file in [*files.items(), ("readme.html", b"<html>")]])
    )
    assert isinstance(content, bytes)
    (folder / ARCHIVE).write_bytes(content)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(content))
    return folder / ARCHIVE


def test_cifar10(
    folder: Path, out: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    archive = cifar10_archive(folder, batches, monkeypatch)
    done("cifar10", "--archives", folder, "--out", out)
    assert tree(out) == {f"{FOLDER}/{name}": content for name, content in batches.items()}
    assert not (out / UNFINISHED).exists()
    said = f"train on it with data.name=cifar10 data.path={out}\n"
    assert capsys.readouterr().out == f"{out}: 7 files in {FOLDER}; {said}"
    asked = Cifar10Settings.model_validate({"name": "cifar10", "path": str(out), "loader": "torch"})
    pipelines.check(asked)
    assert len(cifar10_data.load(asked)[0]) == 10
    archive.unlink()
    done("cifar10", "--archives", folder, "--out", out)
    assert capsys.readouterr().out == f"{out}: complete already; {said}"


def test_cifar10_is_not_opened_unless_official(
    folder: Path, out: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    archive = cifar10_archive(folder, batches, monkeypatch)
    right = md5(archive.read_bytes())
    archive.write_bytes(changed := archive.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(cifar10, "_unpack", lambda *_: pytest.fail("opened"))
    assert run("cifar10", "--archives", folder, "--out", out) == EXIT_BAD_INPUT
    rule = f"is not the official file (its MD5 is {md5(changed)}, not {right}); fetch it anew"
    assert capsys.readouterr().err == f"error: {archive} {rule}\n"
    assert not out.exists()


def links(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        for name in files:
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            made.addfile(member)
    return buffer.getvalue()


ODD = {
    "no gzip": (lambda files: b"no gzip", "is no gzip file, or damaged; fetch it anew"),
    "links": (links, f"lacks {FOLDER}/data_batch_1; fetch it anew"),
    "others": (
        lambda files: gzip.compress(tar([(f"{FOLDER}/{name}", b"cos\nsystem\n") for name in files])),
        f"has a {FOLDER}/data_batch_1 that is not the official one; fetch it anew",
    ),
    "a bomb": (
        lambda files: gzip.compress(bytes(cifar10.MOST_UNPACKED + 1), 1),
        "has more than 536,870,912 bytes when it is decompressed; fetch it anew",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_archives_of_cifar10(
    folder: Path, out: Path, batches: dict[str, bytes], kind: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make, reason = ODD[kind]
    archive = cifar10_archive(folder, batches, monkeypatch, content=make(batches))
    assert run("cifar10", "--archives", folder, "--out", out) == EXIT_BAD_INPUT
    assert capsys.readouterr().err == f"error: {archive} {reason}\n"
    assert not [path for path in tree(out) if not path.startswith(UNFINISHED)]


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file may be larger, as on a disk that is full."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE), 5000
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    yield most
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_file_without_room_is_named(
    folder: Path, out: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    cifar10_archive(folder, batches, monkeypatch)
    request.getfixturevalue("small_files")
    assert run("cifar10", "--archives", folder, "--out", out) == EXIT_BAD_INPUT
    draft = out / UNFINISHED / "unpacked"
    assert capsys.readouterr().err == f"error: {draft}: File too large; make it readable, or room to write\n"


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Unpacked files of MNIST's format, taken for the official ones."""
    files = {}
    for part, n in (("train", 20), ("t10k", 10)):
        files[f"{part}-images-idx3-ubyte"] = struct.pack(">4B3I", 0, 0, 8, 3, n, 28, 28) + bytes(range(196)) * 4 * n
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">4BI", 0, 0, 8, 1, n) + bytes(i % 10 for i in range(n))
    monkeypatch.setattr(mnist, "UNPACKED", {name: md5(content) for name, content in files.items()})
    return files


def put_arrays(folder: Path, files: dict[str, bytes], unpacked: int) -> None:
    """Write the first `unpacked` files as they are, the others packed."""
    for number, (name, content) in enumerate(files.items()):
        if number < unpacked:
            (folder / name).write_bytes(content)
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))


def test_an_archive_that_cannot_be_read_is_named(
    folder: Path, out: Path, arrays: dict[str, bytes], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It is not the file to write that is at fault then."""

    def fails(self: object, size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    put_arrays(folder, arrays, 0)
    monkeypatch.setattr(packed.GzipFile, "read", fails)
    assert run("mnist", "--archives", folder, "--out", out) == EXIT_BAD_INPUT
    archive = folder / f"{next(iter(arrays))}.gz"
    assert capsys.readouterr().err == f"error: {archive}: Input/output error; make it readable, or room to write\n"


@pytest.mark.parametrize("unpacked", [0, 2, 4])
def test_mnist(
    folder: Path, out: Path, arrays: dict[str, bytes], unpacked: int, capsys: pytest.CaptureFixture[str]
) -> None:
    put_arrays(folder, arrays, unpacked)
    done("mnist", "--archives", folder, "--out", out)
    assert tree(out) == {f"MNIST/raw/{name}": content for name, content in arrays.items()}
    said = f"train on it with data.name=mnist data.path={out}\n"
    assert capsys.readouterr().out == f"{out}: 4 files in MNIST/raw; {said}"
    asked = MnistSettings.model_validate({"name": "mnist", "path": str(out), "loader": "torch"})
    pipelines.check(asked)
    assert len(mnist_data.load(asked)[1]) == 10
    done("mnist", "--archives", folder / "gone", "--out", out)
    assert capsys.readouterr().out == f"{out}: complete already; {said}"


def test_mnist_again_takes_only_what_is_not_there(folder: Path, out: Path, arrays: dict[str, bytes]) -> None:
    put_arrays(folder, arrays, 0)
    done("mnist", "--archives", folder, "--out", out)
    (damaged := out / "MNIST/raw/t10k-labels-idx1-ubyte").write_bytes(b"half")
    for name in arrays:
        if name != damaged.name:
            (folder / f"{name}.gz").unlink()
    done("mnist", "--archives", folder, "--out", out)
    assert tree(out) == {f"MNIST/raw/{name}": content for name, content in arrays.items()}


def test_mnist_packed_anew(folder: Path, out: Path, arrays: dict[str, bytes]) -> None:
    """Mirrors pack the files with other programs, at other times: what they hold is the same."""
    for number, (name, content) in enumerate(arrays.items()):
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1 + number, mtime=1_000 + number))
    done("mnist", "--archives", folder, "--out", out)
    assert tree(out) == {f"MNIST/raw/{name}": content for name, content in arrays.items()}


def test_missing_files_of_mnist(
    folder: Path, out: Path, arrays: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    put_arrays(folder, arrays, 1)
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (folder / name).unlink()
    assert run("mnist", "--archives", folder, "--out", out) == EXIT_BAD_INPUT
    named = "t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz"
    assert capsys.readouterr().err == f"error: --archives: {folder} lacks {named}; put it there, under this name\n"
    assert not out.exists()


@pytest.mark.parametrize("packed", [True, False])
def test_other_files_than_mnists(
    folder: Path, out: Path, arrays: dict[str, bytes], packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    put_arrays(folder, arrays, 0 if packed else 4)
    path = folder / ("train-labels-idx1-ubyte" + ".gz" * packed)
    path.write_bytes(gzip.compress(b"others") if packed else b"others")
    assert run("mnist", "--archives", folder, "--out", out) == EXIT_BAD_INPUT
    rule = f"does not hold the official content (its MD5 is {md5(b'others')}, not "
    assert f"error: {path} {rule}" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("pipe", "cannot be read (is a pipe, not a file"),
        ("folder", "cannot be read (is a folder"),
        ("huge", "has 5,368,709,120 bytes, more than 268,435,456; fetch it anew"),
    ],
)
def test_what_is_no_file(
    folder: Path, out: Path, arrays: dict[str, bytes], kind: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_arrays(folder, arrays, 0)
    put(path := folder / "train-images-idx3-ubyte.gz", kind)
    assert run("mnist", "--archives", folder, "--out", out) == EXIT_BAD_INPUT
    assert f"error: {path} {reason}" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["MNIST", "MNIST/raw"])
def test_links_lead_nowhere(
    folder: Path, out: Path, tmp_path: Path, arrays: dict[str, bytes], below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_arrays(folder, arrays, 0)
    (outside := tmp_path / "outside").mkdir()
    (out / below).parent.mkdir(parents=True)
    (out / below).symlink_to(outside)
    assert run("mnist", "--archives", folder, "--out", out) == EXIT_BAD_INPUT
    assert f"error: {out / below} is a link or a file, where a folder is to be filled" in capsys.readouterr().err
    assert not list(outside.iterdir())


def test_the_module_is_the_command(tmp_path: Path) -> None:
    """`python -m pipelines.prepare` is `python -m pipelines prepare`."""
    done = runs.python("-m", "pipelines.prepare", "mnist", "--archives", tmp_path / "none", "--out", tmp_path / "out")
    assert done.returncode == EXIT_BAD_INPUT
    assert done.stderr.startswith(f"error: --archives is {tmp_path / 'none'}, which is no folder; give the folder")
