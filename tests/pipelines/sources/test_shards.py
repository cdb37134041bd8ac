"""Shards hold what the folder held, each sample is read by its place, and what is damaged is named."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.__main__ import PROGRAM
from pipelines.common.errors import UserError
from pipelines.sources import descriptors as descriptors_module
from pipelines.sources import shard_index, shards
from pipelines.sources.base import Encoded
from pipelines.sources.image_folder import list_images
from pipelines.sources.shard_index import index_of, write_index
from pipelines.sources.shards import Shards, list_shards
from pipelines.sources.walking import EXTENSIONS
from pipelines.tools import shards as shard_tools

CLASSES = ["ape", "bee", "cat"]
Member = tuple[str, bytes]


def pack(path: Path, members: Sequence[Member], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form, errors="surrogateescape") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, label: int, content: bytes = b"image") -> list[Member]:
    return [(f"{key}.jpg", content), (f"{key}.cls", b"%d" % label)]


def contents(source: Encoded) -> dict[str, tuple[bytes, int]]:
    return {source.name(i): (source.encoded(i).tobytes(), int(label)) for i, label in enumerate(source.labels)}


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """train/0.tar under tmp_path: two samples of class 0, one of class 1."""
    return pack(tmp_path / "train/0.tar", [*sample("a", 0, b"first"), *sample("b", 1, b""), *sample("x/c", 0, b"3rd")])


def listed(root: Path, pattern: str = "train/*.tar", classes: int = 2, **options: Any) -> Shards:
    return list_shards(root, pattern, classes, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for part, each in (("train", 9), ("val", 2)):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for i in range(each):
                extension = EXTENSIONS[i % len(EXTENSIONS)].upper()
                (root / part / name / f"im.age {i}.{extension}").write_bytes(os.urandom(7 * i))
    return root


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "new/out"
    assert PROGRAM.run(["shards", "write", str(folder), str(out), "--samples", "10"]) == 0
    return out


@pytest.mark.parametrize("part", ["train", "val"])
def test_shards_hold_what_the_folder_holds(folder: Path, written: Path, part: str) -> None:
    found = list_shards(written, f"{part}/*.tar", 3)
    expected = list_images(folder, part, CLASSES)
    assert isinstance(found, Encoded)
    assert Counter(contents(found).values()) == Counter(contents(expected).values())
    assert found.class_names == expected.class_names == tuple(CLASSES)
    if part == "val":
        np.testing.assert_array_equal(found.labels, expected.labels)


def test_written_shards_mix_the_classes_and_are_the_same_each_time(folder: Path, written: Path, tmp_path: Path) -> None:
    shard_tools.write(folder, tmp_path / "again", 10)
    shards_of_training = sorted((written / "train").glob("*.tar"))
    assert [path.name for path in shards_of_training] == ["00000.tar", "00001.tar", "00002.tar"]
    for path in shards_of_training:
        assert (tmp_path / "again/train" / path.name).read_bytes() == path.read_bytes()
    found = list_shards(written, "train/*.tar", 3)
    assert len(set(found.labels[found.shards == 0].tolist())) == 3


def test_the_command_says_what_is_wrong_and_exits_2(tmp_path: Path) -> None:
    pack(tmp_path / "train/0.tar", [("a.jpg", b"")])
    command = [sys.executable, "-m", "pipelines", "shards", "index", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert ended.stderr.startswith("error: --pattern: ")
    assert "no label (a.cls)" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["write", "{0}/none", "{0}/out"], "none/train cannot be read (No such file"),
        (["write", "{0}", "{0}/out", "--samples", "0"], "--samples is 0"),
        (["write", "{0}", "{0}"], "is there and not an empty folder"),
        (["write", "{0}", "{0}/a file"], "is there and not an empty folder"),
        (["index", "{0}"], "'*/*.tar' matches no shard"),
    ],
)
def test_mistakes_of_the_command_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a file").touch()
    assert PROGRAM.run(["shards", *[argument.format(tmp_path) for argument in arguments]]) == 2
    assert message in capsys.readouterr().err


keys = st.builds(
    lambda folders, base: "/".join([*folders, base]),
    st.lists(st.sampled_from(["a", "b.c", ".d", "folder" * 30]), max_size=2),
    st.text(st.characters(exclude_characters="./\0", exclude_categories=["Cs"]), min_size=1, max_size=5)
    | st.just("long" * 40),
)
made_up = st.fixed_dictionaries(
    {
        "extension": st.sampled_from([*EXTENSIONS, "JPG", "Png"]),
        "label_extension": st.sampled_from(["cls", "CLS"]),
        "image": st.binary(max_size=40),
        "label": st.integers(0, 4),
        "others": st.sets(st.sampled_from(["json", "txt", "seg.png", "jpg.cls"])),
    }
)


def members_of(key: str, sample: dict[str, Any]) -> list[Member]:
    return [
        (f"{key}.{sample['extension']}", sample["image"]),
        (f"{key}.{sample['label_extension']}", b" %d\n" % sample["label"]),
        *((f"{key}.{extension}", b"{}") for extension in sample["others"]),
    ]


@given(
    st.lists(st.dictionaries(keys, made_up, max_size=5), min_size=1, max_size=3).filter(any),
    st.randoms(use_true_random=False),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.booleans(),
)
def test_samples_are_those_that_a_reader_of_the_whole_tar_finds(
    made: list[dict[str, dict[str, Any]]], random: Any, form: int, indexed: bool
) -> None:
    """Whatever the order of the members, and whatever stands between them."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        expected = []
        for number, samples in enumerate(made):
            members = [member for key, sample in samples.items() for member in members_of(key, sample)]
            members += [("README", b"no dot"), ("folder/.hidden.jpg", b"?"), ("notes.txt", b"no sample")]
            random.shuffle(members)
            shard = pack(root / f"{number}.tar", members, form)
            if indexed:
                write_index(shard, "here")
            by_image = {f"{key}.{sample['extension']}": sample for key, sample in samples.items()}
            with tarfile.open(shard) as tar:
                for member in tar:
                    if member.name in by_image:
                        stored = tar.extractfile(member)
                        assert stored is not None
                        expected.append((f"{number}.tar/{member.name}", stored.read(), by_image[member.name]["label"]))
        found = list_shards(root, "*.tar", 5, every_class=False)
        assert [(name, *rest) for name, rest in contents(found).items()] == expected
        assert found.offsets.dtype == found.sizes.dtype == found.labels.dtype == found.ends.dtype == np.int64


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    pack(tmp_path / "train/0.tar", sample("\udce9", 0), tarfile.GNU_FORMAT)
    found = listed(tmp_path, classes=1)
    assert found.name(0) == "train/0.tar/\udce9.jpg"
    assert len(found.listing) == 16


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def test_classes_are_numbered_unless_a_file_names_them(shard: Path, tmp_path: Path) -> None:
    assert listed(tmp_path).class_names == ("0", "1")
    (tmp_path / "classes.txt").write_text("ape\nbee\n")
    assert listed(tmp_path).class_names == ("ape", "bee")
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfape\r\nbee\r\n")  # As some editors write it.
    assert listed(tmp_path).class_names == ("ape", "bee")
    (tmp_path / "classes.txt").write_text("ape\nbee\ncat\n")
    assert listed(tmp_path).class_names == ("0", "1")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("d.jpg", b"")], "has an image of sample d but no label (d.cls)"),
        ([("d.cls", b"0"), ("d.json", b"")], "has a label of sample d but no image"),
        ([*sample("d", 0), ("d.PNG", b"")], "second image of sample d, d.PNG"),
        ([*sample("d", 0), *sample("d", 0)], "second image of sample d, d.jpg"),
        ([*sample("d", 0), ("d.CLS", b"1")], "second label of sample d, d.CLS"),
        ([("d.cls", b"ape"), ("d.jpg", b"")], "has b'ape' as label in d.cls"),
        ([("d.cls", b""), ("d.jpg", b"")], "has b'' as label in d.cls"),
        ([("d.cls", b"1_0"), ("d.jpg", b"")], "has b'1_0' as label"),
        ([("d.cls", b"9" * 30), ("d.jpg", b"")], "as label in d.cls"),
        ([("d.cls", b"1" + b" " * 64), ("d.jpg", b"")], "as label in d.cls"),
        (
            sample("d", 2),
            "train/1.tar/d.jpg in {root} has label 2, data.number_of_classes is 2 and labels go from 0 to 1",
        ),
        (sample("d", -1), "has label -1"),
    ],
)
def test_samples_that_are_none(shard: Path, tmp_path: Path, members: list[Member], message: str) -> None:
    pack(tmp_path / "train/1.tar", members)
    assert message.format(root=tmp_path) in refusal(tmp_path)


def refusal(root: Path, pattern: str = "train/*.tar", classes: int = 2, **options: Any) -> str:
    """The message, which is one line and begins with the setting."""
    with pytest.raises(UserError) as caught:
        listed(root, pattern, classes, setting="data.some_shards", **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(("data.some_shards: ", "data.exclude: "))
    return message


def test_links_and_sparse_files_are_refused(tmp_path: Path) -> None:
    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE):
        pack(tmp_path / "train/0.tar", sample("a", 0))
        with tarfile.open(tmp_path / "train/0.tar", "a", format=tarfile.GNU_FORMAT) as tar:
            info = tarfile.TarInfo("b.jpg")
            info.type, info.linkname = kind, "a.jpg"
            tar.addfile(info)
        assert "has b.jpg as a link or sparse" in refusal(tmp_path)


@pytest.mark.parametrize("pattern", ["test/*.tar", "/tmp/*.tar", "", "train/{0..1}.tar"])
def test_patterns_that_match_nothing(shard: Path, tmp_path: Path, pattern: str) -> None:
    assert f"{pattern!r} matches no shard in {tmp_path}" in refusal(tmp_path, pattern)


def test_patterns_pass_over_indexes_and_hidden_files(shard: Path, tmp_path: Path) -> None:
    write_index(shard, "here")
    (shard.parent / "._0.tar").write_bytes(b"of macOS")
    assert listed(tmp_path, "train/*").paths == ("train/0.tar",)


def test_classes_without_samples(shard: Path, tmp_path: Path) -> None:
    assert "2 of 4 classes have no sample in the shards 'train/*.tar' in" in refusal(tmp_path, classes=4)
    assert len(listed(tmp_path, classes=4, every_class=False).labels) == 3


def test_shards_without_samples(tmp_path: Path) -> None:
    pack(tmp_path / "train/0.tar", [])
    assert "hold no sample" in refusal(tmp_path, every_class=False)


def test_files_that_are_no_shards(shard: Path, tmp_path: Path) -> None:
    original = shard.read_bytes()
    for content, message in [
        (gzip.compress(original), "is compressed (gzip), samples are read by their place; decompress it"),
        (b"", "is no tar, or damaged after byte 0 (no bytes)"),
        (b"something else" * 100, "is no tar, or damaged after byte 0"),
        (original + original, "is damaged, or several tars in one"),
    ]:
        shard.write_bytes(content)
        assert f"{shard} {message}" in refusal(tmp_path)
    shard.unlink()
    shard.mkdir()
    assert f"{shard} cannot be read (is a folder)" in refusal(tmp_path)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    """Wherever a tar is cut, up to the zeros that fill it up."""
    shard = pack(tmp_path / "train/0.tar", [*sample("a", 0, bytes(600)), *sample("n" * 150, 1)])
    original = shard.read_bytes()
    end = len(original.rstrip(b"\0"))
    end += -end % tarfile.BLOCKSIZE
    for size in [*range(0, end + 512, 97), *range(0, end + 512, 512), end - 511, end + 511]:
        shard.write_bytes(original[:size])
        assert f"{shard} is " in refusal(tmp_path)
    shard.write_bytes(original[: end + 512])
    assert len(listed(tmp_path).labels) == 2


@pytest.mark.parametrize("byte", [0, 150, 1024, 1024 + 130, 2048])
def test_damaged_headers_are_found(tmp_path: Path, byte: int) -> None:
    shard = pack(tmp_path / "train/0.tar", [*sample("a", 0), *sample("b", 1)])
    rewrite(shard, lambda content: content[:byte] + b"\xff" + content[byte + 1 :])
    assert "damaged" in refusal(tmp_path)


def test_a_size_below_0_is_found(tmp_path: Path) -> None:
    """Python's reader takes it, and would go round in circles."""
    shard = pack(tmp_path / "train/0.tar", sample("a", 0))
    header = bytearray(shard.read_bytes()[:512])
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    rewrite(shard, lambda content: bytes(header) + content[512:])
    assert "is damaged: a.jpg has -512 bytes" in refusal(tmp_path)


def test_samples_can_be_left_out(shard: Path, tmp_path: Path) -> None:
    pack(tmp_path / "train/1.tar", sample("a", 1, b"fourth"))
    before = listed(tmp_path)
    left_out = frozenset({"train/0.tar/a.jpg", "train/9.tar/a.jpg", "val/0.tar/a.jpg", "train/0.tar/b.jpg"})
    found = listed(tmp_path, excluded=left_out)
    assert contents(found) == {"train/0.tar/x/c.jpg": (b"3rd", 0), "train/1.tar/a.jpg": (b"fourth", 1)}
    assert found.listing != before.listing
    for name in ("train/0.tar/c.jpg", "train/0.tar/", "train/1.tar/a.cls"):
        message = refusal(tmp_path, excluded=frozenset({name}))
        assert message.startswith(f"data.exclude: {name} is to be skipped, but the shard has no such image")
    assert "1 of 2 classes have no sample" in refusal(tmp_path, excluded=left_out | {"train/1.tar/a.jpg"})


def test_the_listing_tells_samples_apart_not_folders(shard: Path, tmp_path: Path) -> None:
    before = listed(tmp_path).listing
    moved = tmp_path / "moved"
    pack(moved / "train/0.tar", [*sample("a", 0, b"first"), *sample("b", 1, b""), *sample("x/c", 0, b"3rd")])
    assert listed(moved).listing == before
    pack(moved / "train/0.tar", [*sample("a", 1, b"first"), *sample("b", 0, b""), *sample("x/c", 0, b"3rd")])
    assert listed(moved).listing != before


def test_an_index_stands_for_the_headers(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = listed(tmp_path)
    assert PROGRAM.run(["shards", "index", str(tmp_path)]) == 0
    assert sorted(os.listdir(shard.parent)) == ["0.tar", "0.tar.index"]
    monkeypatch.setattr(shards, "read_tar", None)
    found = listed(tmp_path)
    assert found.listing == before.listing
    assert contents(found) == contents(before)


def test_an_index_of_another_state_is_not_used(shard: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_index(shard, "here")
    listed(tmp_path)
    assert not caplog.records
    time = shard.stat().st_mtime_ns
    os.utime(shard, ns=(time, time + 1))
    listed(tmp_path)
    assert "1 indexes" in caplog.text
    assert "train/0.tar.index is not of this state" in caplog.text
    caplog.clear()
    pack(shard, [*sample("a", 0), *sample("b", 1), ("c.json", bytes(20_000))])
    os.utime(shard, ns=(time, time))
    assert len(listed(tmp_path).labels) == 2
    assert "not of this state" in caplog.text


@given(place=st.integers(0, 10_000), how=st.sampled_from(["cut", "flipped"]))
def test_a_damaged_index_is_not_used(place: int, how: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shard = pack(Path(folder) / "0.tar", [*sample("a", 0), *sample("b", 1)])
        write_index(shard, "here")
        index = index_of(shard)
        content = bytearray(index.read_bytes())
        place %= len(content)
        if how == "cut":
            del content[place:]
        else:
            content[place] ^= 1
        index.write_bytes(content)
        with pytest.raises(shard_index.UnusableError, match="is damaged, or of another version"):
            shard_index.read_index(shard)
        assert len(list_shards(Path(folder), "*.tar", 2).labels) == 2


def test_an_index_is_written_whole_or_not_at_all(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_index.os, "replace", no_space)
    with pytest.raises(OSError, match="No space"):
        write_index(shard, "here")
    assert os.listdir(shard.parent) == ["0.tar"]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """More shards than are kept open."""
    for number in range(9):
        pack(tmp_path / f"{number}.tar", [m for i in range(8) for m in sample(f"{i}", i % 2, os.urandom(20_000))])
    return tmp_path


def descriptors(folder: Path) -> int:
    """Count the files of the folder that this process has open."""
    links = (Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd"))
    return sum(os.path.realpath(link).startswith(f"{folder.resolve()}/") for link in links)


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_threads_read_more_shards_than_stay_open(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors_module, "DESCRIPTORS", 2)
    before = descriptors(many)
    found = list_shards(many, "*.tar", 2)
    expected = read_all(found)
    assert len(set(expected)) == 72
    assert descriptors(many) == before + 2
    order = np.random.default_rng(0).integers(0, 72, 6000).tolist()
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(found.encoded, order))
    assert all(content.tobytes() == expected[i] for i, content in zip(order, read, strict=True))
    assert descriptors(many) == before + 2
    del found
    assert descriptors(many) == before


def read_all(source: Shards) -> list[bytes]:
    return [source.encoded(i).tobytes() for i in range(len(source.labels))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(many: Path, method: str) -> None:
    found = list_shards(many, "*.tar", 2)
    expected = read_all(found)  # opens descriptors, which a fork inherits
    with multiprocessing.get_context(method).Pool(2 if method == "fork" else 1) as pool:
        others = pool.map_async(found.encoded, range(72))
        assert read_all(found) == expected
        assert [content.tobytes() for content in others.get(60)] == expected


def test_a_copy_opens_files_of_its_own(many: Path) -> None:
    found = list_shards(many, "*.tar", 2)
    expected = read_all(found)
    copy = pickle.loads(pickle.dumps(found))
    assert copy._opened is not found._opened
    del found
    assert read_all(copy) == expected


def test_a_shard_that_shrank_or_went_is_an_oserror(shard: Path, tmp_path: Path) -> None:
    found = listed(tmp_path)
    os.truncate(shard, 514)
    with pytest.raises(OSError, match=r"train/0.tar ends at byte 514, within train/0.tar/a.jpg"):
        found.encoded(0)
    shard.unlink()
    copy = pickle.loads(pickle.dumps(found))
    with pytest.raises(FileNotFoundError, match=r"train/0\.tar"):
        copy.encoded(0)
