"""Shards, indexes and lists that somebody has made to be wrong: each is refused in a line, or is what it holds."""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipelines
from pipelines.__main__ import PROGRAM
from pipelines.common.errors import UserError
from pipelines.datasets.webdataset import WebdatasetSettings
from pipelines.sources import shard_index
from pipelines.sources.base import digest
from pipelines.sources.shard_index import INDEX_KIND, index_of, read_index, write_index
from pipelines.sources.shards import list_shards
from pipelines.sources.tar_headers import UnusableError
from tests.pipelines.pictures import CLASSES, numbered_folder, put
from tests.pipelines.sources.test_shards import Member, contents, listed, pack, refusal, sample


def found_in(root: Path, members: Sequence[Member]) -> dict[str, tuple[bytes, int]]:
    pack(root / "train/0.tar", members)
    return {
        name.removeprefix("train/0.tar/"): what
        for name, what in contents(listed(root, classes=3, every_class=False)).items()
    }


def test_a_dot_in_the_name_is_part_of_the_key_where_image_and_label_agree(tmp_path: Path) -> None:
    members = [*sample("img.0001", 1, b"one"), *sample("img.0002", 2, b"two"), *sample("v1.5/a.b.c", 0, b"three")]
    assert found_in(tmp_path, members) == {
        "img.0001.jpg": (b"one", 1), "img.0002.jpg": (b"two", 2), "v1.5/a.b.c.jpg": (b"three", 0)
    }  # fmt: skip
    both = [*sample("img", 0, b"plain"), *sample("img.0001", 1, b"dotted")]
    assert found_in(tmp_path, both) == {"img.jpg": (b"plain", 0), "img.0001.jpg": (b"dotted", 1)}


def test_other_parts_of_a_sample_stay_what_they_are(tmp_path: Path) -> None:
    members = [("a.seg.png", b"mask"), *sample("a", 1, b"image"), ("a.json", b"{}"), ("a.old.cls", b"ape")]
    assert found_in(tmp_path, members) == {"a.jpg": (b"image", 1)}
    members = [*sample("b.1", 2, b"image"), ("b.1.seg.png", b"mask"), *sample("b", 0, b"another")]
    assert found_in(tmp_path, members) == {"b.1.jpg": (b"image", 2), "b.jpg": (b"another", 0)}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("img.0001.jpg", b"")], "has an image of sample img.0001 but no label (img.0001.cls)"),
        ([("img.0001.cls", b"0")], "has a label of sample img.0001 but no image"),
        ([("img.0001.jpg", b""), ("img.0002.cls", b"0")], "has an image of sample img.0001 but no label"),
        ([("a.seg.png", b""), ("a.cls", b"0")], "has an image of sample a.seg but no label"),
        ([*sample("a.b", 0), ("a.b.PNG", b"")], "has a second image of sample a.b, a.b.PNG"),
        ([*sample("a.b", 0), ("a.b.CLS", b"1")], "has a second label of sample a.b, a.b.CLS"),
        ([("a.b.jpg", b""), ("a.b.cls", b"ape")], "has b'ape' as label in a.b.cls"),
        ([("x\n\x1b[31m.jpg", b"")], "has an image of sample x\\n\\x1b[31m but no label"),
    ],
)
def test_what_pairs_with_nothing_is_never_dropped(tmp_path: Path, members: list[Member], message: str) -> None:
    pack(tmp_path / "train/0.tar", members)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize("odd", ["pipe", "device", "folder"])
@pytest.mark.parametrize("indexed", [False, True])
def test_only_files_are_shards(tmp_path: Path, odd: str, indexed: bool, caplog: pytest.LogCaptureFixture) -> None:
    pack(tmp_path / "train/0.tar", [*sample("a", 0), *sample("b", 1)])
    if indexed:
        write_index(tmp_path / "train/0.tar", "here")
    put(tmp_path / "train/0.tar", odd)
    assert f"0.tar cannot be read (is a {odd}" in refusal(tmp_path)


@pytest.mark.parametrize("odd", ["pipe", "device", "folder"])
def test_only_files_are_indexes(tmp_path: Path, odd: str, caplog: pytest.LogCaptureFixture) -> None:
    shard = pack(tmp_path / "train/0.tar", [*sample("a", 0), *sample("b", 1)])
    put(index_of(shard), odd)
    assert len(listed(tmp_path).labels) == 2
    assert f"train/0.tar.index cannot be read (is a {odd}" in caplog.text
    assert PROGRAM.run(["shards", "index", str(tmp_path)]) == (2 if odd == "folder" else 0)


def test_an_index_without_end_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = pack(tmp_path / "train/0.tar", [*sample("a", 0), *sample("b", 1)])
    with index_of(shard).open("wb") as file:
        file.truncate(100 << 30)
    assert len(listed(tmp_path).labels) == 2
    assert "0.tar.index cannot be read (has 107,374,182,400 bytes, more than" in caplog.text


def crafted(shard: Path, samples: int | None = None, names: int | None = None, **arrays: Any) -> None:
    """An index of a right digest and stamp that says something else."""
    found = shard_index.read_tar(shard, "here")
    given = {"lengths": found.lengths, "offsets": found.offsets, "sizes": found.sizes, "labels": found.labels, **arrays}
    numbers = [len(found.labels) if samples is None else samples, len(found.names) if names is None else names]
    table = np.stack([given[name] for name in ("lengths", "offsets", "sizes", "labels")]).astype("<i8")
    head = np.array([*numbers, *shard_index._stamp(shard)], dtype="<i8").tobytes()
    content = INDEX_KIND + head + table.tobytes() + found.names.tobytes()
    index_of(shard).write_bytes(content + digest(content).encode())


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": -1},
        {"samples": 2**62},
        {"samples": 1},
        {"names": 2**62},
        {"names": -5},
        {"lengths": [0, 10]},
        {"lengths": [-5, 15]},
        {"lengths": [2**63 - 1, 2**63 - 1]},
        {"offsets": [0, 1536]},
        {"offsets": [512, 2**62]},
        {"offsets": [513, 1536]},
        {"offsets": [-(2**63), 1536]},
        {"sizes": [5, -1]},
        {"sizes": [5, 2**63 - 1]},
        {"sizes": [5, 100_000]},
    ],
)
def test_an_index_is_held_against_the_shard(
    tmp_path: Path, wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Its digest can be computed by anybody."""
    shard = pack(tmp_path / "train/0.tar", [*sample("a", 0), *sample("b", 1)])
    crafted(shard)
    read = read_index(shard)
    assert read is not None and read.labels.tolist() == [0, 1]
    crafted(shard, **wrong)
    with pytest.raises(UnusableError, match=r"is damaged, or of another version|names samples that cannot be in"):
        read_index(shard)
    assert contents(listed(tmp_path)) == {"train/0.tar/a.jpg": (b"image", 0), "train/0.tar/b.jpg": (b"image", 1)}
    assert "1 indexes" in caplog.text
    crafted(shard, labels=[0, 2**62])
    assert "has label 4611686018427387904, data.number_of_classes is 2" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 16, INDEX_KIND, INDEX_KIND + bytes(16), INDEX_KIND + bytes(31)])
def test_an_index_that_is_too_short(tmp_path: Path, content: bytes) -> None:
    shard = pack(tmp_path / "train/0.tar", sample("a", 0))
    index_of(shard).write_bytes(content + digest(content).encode())
    with pytest.raises(UnusableError, match="is damaged, or of another version"):
        read_index(shard)


@pytest.mark.parametrize("pattern", ["a" * 300, "a\0b", "../*.tar", "*/" * 3000 + "*.tar", "**a"])
def test_patterns_that_cannot_be(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UserError, match="matches no shard in"):
        list_shards(tmp_path, pattern, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ape\n\x1b[31mred\n", r"has the class \\x1b\[31mred, a name with"),
        (b"ape\n\ncat\n", "has no name in line 2"),
        (b"", "has no name in line 1"),
        (b"caf\xe9\nbee\n", r"cannot be read \(is no UTF-8\)"),
        (b"\n" * 2_000_000, "has more than 1,048,576 lines"),
        (b"ape\nbee\ncat\n", r"data.number_of_classes is 2, .*classes.txt names 3; .*number_of_classes=3"),
    ],
)
def test_lists_of_classes_that_cannot_be(tmp_path: Path, content: bytes, message: str) -> None:
    root = shards_of(tmp_path, {"train": 4, "val": 2})
    (root / "classes.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        pipelines.check(settings(root, number_of_classes=2))


def test_a_list_of_classes_that_is_a_pipe(tmp_path: Path) -> None:
    root = shards_of(tmp_path, {"train": 4, "val": 2})
    os.mkfifo(root / "classes.txt")
    with pytest.raises(UserError, match=r"classes.txt cannot be read \(is a pipe, not a file\)"):
        settings(root).resolved()


def settings(root: Path, **options: object) -> WebdatasetSettings:
    small = {"image_size": 16, "evaluation_resize": 16, "threads": 1}
    return WebdatasetSettings.model_validate({"name": "webdataset", "path": str(root), **small, **options})


def shards_of(root: Path, parts: dict[str, int]) -> Path:
    for part, count in parts.items():
        pack(root / part / "0.tar", [member for i in range(count) for member in sample(f"{i}", i % 2)])
    return root


@pytest.mark.parametrize("indexed", [False, True])
def test_the_number_of_classes_is_read_from_list_or_labels(tmp_path: Path, indexed: bool) -> None:
    root = shards_of(tmp_path, {"train": 5, "val": 2})
    if indexed:
        assert PROGRAM.run(["shards", "index", str(root)]) == 0
    found = settings(root).resolved()
    assert found.classes == 2
    pipelines.check(found)
    (root / "classes.txt").write_bytes("ape\r\nübel\r\n猿\r\n".encode())
    assert settings(root).resolved().classes == 3
    with pytest.raises(UserError, match=r"matches no shard in "):
        settings(root / "train").resolved()
    pack(root / "train/1.tar", sample("a", 10**17))
    (root / "classes.txt").unlink()
    with pytest.raises(UserError, match="has 100,000,000,000,000,001 classes; there must be 2 to 1,048,576"):
        settings(root).resolved()


@pytest.mark.parametrize(
    ("folders", "given", "test", "validation"),
    [
        (["val"], {}, 2, None),
        (["valid"], {}, 2, None),
        (["test"], {}, 2, None),
        (["validation", "test"], {}, 3, 2),
        (["val", "test"], {"val_shards": "val/*.tar"}, 2, None),
        (["val", "test"], {"val_shards": "test/*.tar", "test_shards": "val/*.tar"}, 2, 3),
        ([], {"validation_samples": 2}, None, 2),
    ],
)
def test_shards_are_for_what_their_folders_say(
    tmp_path: Path, folders: list[str], given: dict[str, Any], test: int | None, validation: int | None
) -> None:
    import pipelines
    from tests.pipelines.streams import request

    root = shards_of(tmp_path, {"train": 6, **{folder: 2 + index for index, folder in enumerate(folders)}})
    asked = settings(root, number_of_classes=2, **given)
    pipelines.check(asked)
    data = pipelines.build(asked, request(batch=2))
    assert (data.test and data.test.samples) == test
    assert (data.validation and data.validation.samples) == validation
    data.close()


def test_shards_need_something_to_evaluate_on(tmp_path: Path) -> None:
    root = shards_of(tmp_path, {"train": 6})
    with pytest.raises(UserError, match="has nothing to evaluate on"):
        pipelines.check(settings(root, number_of_classes=2))
    shards_of(tmp_path, {"val": 2, "test": 2})
    with pytest.raises(UserError, match=r"validation_samples is 2, and .* has val/.* beside test/"):
        pipelines.check(settings(root, number_of_classes=2, validation_samples=2))


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "pipelines", "shards", *map(str, arguments)]


def test_writing_takes_all_parts_and_folders_within(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = numbered_folder(tmp_path / "folder", train=40, val=6)
    (folder / "val").rename(folder / "valid")
    (folder / "test").mkdir()
    (folder / "train/ape").rename(folder / "train/moved")
    (folder / "train/ape").mkdir()
    (folder / "train/moved").rename(folder / "train/ape/within")
    for name in CLASSES:
        (folder / "valid" / name / "more").mkdir()
        os.link(next((folder / "valid" / name).glob("*.png")), folder / "valid" / name / "more/again.png")
    out = tmp_path / "out"
    assert PROGRAM.run(["shards", "write", str(folder), str(out), "--samples", "7"]) == 0
    assert sorted(os.listdir(out)) == ["classes.txt", "train", "valid"]
    counts = {part: len(list_shards(out, f"{part}/*.tar", 3).labels) for part in ("train", "valid")}
    assert counts == {"train": 40, "valid": 9}
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "write train: 2 of 40 images" and "write train: 40 of 40 images" in said
    assert "write valid: 9 of 9 images" in said and "index: 8 of 8 shards" in said
    assert len(said) <= 20 + 9 + 8
    assert settings(out).resolved().classes == 3


def test_writing_in_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    folder = numbered_folder(tmp_path / "folder", train=9, val=3)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = subprocess.Popen(command("write", folder, tmp_path / "out"), stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # The other end is closed.
            break
        shown += part
    assert process.wait() == 0
    assert b"write train: 100%" in shown and b"9/9" in shown and b" images" in shown
    os.close(ours)


@pytest.mark.parametrize("odd", ["pipe", "folder"])
@pytest.mark.parametrize("there", [False, True])
def test_writing_is_whole_or_not_at_all(
    tmp_path: Path, odd: str, there: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = numbered_folder(tmp_path / "folder", train=9, val=3)
    put(folder / "val/bee/0001.png", odd)
    out = tmp_path / "deep/er/out"
    if there:
        out.mkdir(parents=True)
    assert PROGRAM.run(["shards", "write", str(folder), str(out)]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("write ")]
    assert len(error) == 1 and error[0].startswith(f"error: {folder}/val/bee/0001.png cannot be read (")
    assert list(out.iterdir()) == [] if there else not (tmp_path / "deep").exists()


def test_a_shard_without_room_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = numbered_folder(tmp_path / "folder", train=9, val=3), tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        assert PROGRAM.run(["shards", "write", str(folder), str(out)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("write ")]
    shard = out / f".writing-{os.getpid()}/train/00000.tar"
    assert error == [f"error: {shard}: File too large; make it readable, or room to write"]
    assert not out.exists()


def test_writing_ends_tidily_on_request(tmp_path: Path) -> None:
    folder = numbered_folder(tmp_path / "folder", train=30, val=3)
    process = subprocess.Popen(command("write", folder, tmp_path / "out"), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline().startswith("write train: ")
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait() in (0, 130), rest
    assert "Traceback" not in rest
    assert (tmp_path / "out").exists() == (process.returncode == 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = numbered_folder(tmp_path / "folder", train=9, val=3)
    (tmp_path / "locked").mkdir(mode=0o500)
    assert PROGRAM.run(["shards", "write", str(folder), str(tmp_path / "locked/out")]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}/locked/out: Permission denied; make it readable, or room to write\n"
    )


def test_a_name_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = numbered_folder(tmp_path / "folder", train=9, val=3)
    (tmp_path / "file").touch()
    assert PROGRAM.run(["shards", "write", str(folder), str(tmp_path / "file/out")]) == 2
    said = capsys.readouterr().err
    assert "Not a directory" in said and said.count("\n") == 1 and said.startswith("error: ")
    assert PROGRAM.run(["shards", "write", str(folder), str(tmp_path / ("x" * 300))]) == 2
    assert "a path has at most 4000 bytes, and a name in it 255" in capsys.readouterr().err
