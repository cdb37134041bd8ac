"""Parquet shards: every image is read by its place, by any thread and process, whatever wrote it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.common.errors import UserError
from pipelines.sources.base import Encoded
from tests.pipelines.parquet_files import Row, pa, pq, table, write

from pipelines.sources import parquet_footer, parquet_reader  # isort: skip - these need pyarrow
from pipelines.sources.parquet_pages import BLOCK, snappy_blocks, varint  # isort: skip
from pipelines.sources.parquet_shards import Asked, ParquetShards, list_parquet  # isort: skip

LAYOUTS: dict[str, dict[str, Any]] = {
    "as Hugging Face writes": {},
    "with pages by content": {"use_content_defined_chunking": True, "write_page_index": True},
    "not compressed": {"compression": "none"},
    "plain": {"compression": "none", "use_dictionary": False},
    "plain snappy": {"use_dictionary": False},
    "small pages": {"use_dictionary": False, "data_page_size": 1000, "write_batch_size": 1},
    "newer pages": {"data_page_version": "2.0", "use_dictionary": False},
    "zstd": {"compression": "zstd"},
    "gzip": {"compression": "gzip"},
    "one row group": {"row_group_size": 1000},
    "newer format": {"version": "2.6", "write_statistics": False},
}
PLACED = set(LAYOUTS) - {"newer pages", "zstd", "gzip"}


def images(count: int, largest: int = 200_000) -> list[bytes]:
    """Bytes that do not compress, as those of photographs, and some that do."""
    draw = np.random.default_rng(count)
    sizes = [1, 65_535, 65_536, 131_073, *draw.integers(1, largest, count).tolist()][:count]
    return [draw.bytes(size) if number % 7 != 6 else bytes(size) for number, size in enumerate(sizes)]


def rows(count: int, largest: int = 200_000) -> list[Row]:
    return [(content, number % 2) for number, content in enumerate(images(count, largest))]


def listed(root: Path, classes: int = 3, **options: Any) -> ParquetShards:
    paths = tuple(sorted(path.relative_to(root).as_posix() for path in root.glob("**/*.parquet")))
    return list_parquet(root, paths, classes, **{"every_class": False, "setting": "data.some_shards", **options})


def contents(source: Encoded) -> list[bytes]:
    return [source.encoded(index).tobytes() for index in range(len(source.labels))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_are_those_that_pyarrow_reads(tmp_path: Path, layout: str) -> None:
    for number in range(2):
        write(tmp_path / f"{number}.parquet", table(rows(22 + number)), **LAYOUTS[layout])
    source = listed(tmp_path)
    assert isinstance(source, Encoded)
    tables = [pq.read_table(tmp_path / f"{number}.parquet").to_pylist() for number in range(2)]
    expected = [row["image"]["bytes"] for table in tables for row in table]
    order = np.random.default_rng(0).permutation(len(expected)).tolist()
    for _ in range(2):
        assert all(source.encoded(index).tobytes() == expected[index] for index in order)
    assert source.labels.tolist() == [row["label"] for table in tables for row in table]
    placed = sum(int((found["start"] > 0).sum()) for found in source.reader._places.values())
    assert placed >= 45 - 8 if layout in PLACED else placed == 0, placed


def test_an_image_with_a_place_costs_no_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read again, by another state that knows the places, the row group is not touched."""
    write(tmp_path / "0.parquet", rows(6))
    source = listed(tmp_path)
    expected = contents(source)
    source.reader._group = source.reader._large_group = None  # type: ignore[assignment]
    assert contents(source) == expected


values = st.lists(
    st.one_of(
        st.binary(max_size=50),
        st.tuples(st.integers(0, 2**32), st.integers(60_000, 140_000)).map(
            lambda made: np.random.default_rng(made[0]).bytes(made[1])
        ),
        st.tuples(st.binary(min_size=1, max_size=3), st.integers(1, 50_000)).map(lambda made: made[0] * made[1]),
        st.none(),
    ),
    min_size=1,
    max_size=12,
)


@given(values, st.sampled_from(sorted(LAYOUTS)), st.integers(1, 12))
def test_any_bytes_are_read_as_they_are(
    tmp_path_factory: Any, made: list[bytes | None], layout: str, size: int
) -> None:
    """Doubles, empty ones, nulls and those that compress well among them."""
    root = tmp_path_factory.mktemp("any")
    options = {"row_group_size": size, **LAYOUTS[layout]}
    write(root / "0.parquet", [(content, 0) for content in [*made, made[0]]], **options)
    source = listed(root)
    for _ in range(2):
        for index, content in enumerate([*made, made[0]]):
            if content is None:
                with pytest.raises(OSError, match="holds no image: it is null"):
                    source.encoded(index)
            else:
                assert source.encoded(index).tobytes() == content


def test_blocks_of_snappy_are_found() -> None:
    """Worked by hand: a literal of 3 bytes, then a copy of 5 from 3 bytes back, and a literal."""
    stream = bytes([9, 2 << 2, *b"abc", 1 | (5 - 4) << 2, 3, 0 << 2, *b"x"])
    assert pa.decompress(stream, decompressed_size=9, codec="snappy").to_pybytes() == b"abcabcabx"
    assert snappy_blocks(memoryview(stream), 9) == [1, len(stream)]
    for size in (BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK):
        content = np.random.default_rng(size).bytes(size)
        stream = pa.compress(content, codec="snappy", asbytes=True)
        starts = snappy_blocks(memoryview(stream), size)
        assert starts is not None and len(starts) == 1 + -(-size // BLOCK) and starts[-1] == len(stream)
        for number, (start, end) in enumerate(pairwise(starts)):
            part = content[number * BLOCK : (number + 1) * BLOCK]
            alone = pa.decompress(varint(len(part)) + stream[start:end], decompressed_size=len(part), codec="snappy")
            assert alone.to_pybytes() == part


@pytest.mark.parametrize(
    "stream", [b"", b"\x05", b"\x05\x00a", b"\x01\xf0", b"\x01\x00a\x00", b"\x00" * 50, b"\xff" * 50]
)
def test_streams_that_are_none_have_no_blocks(stream: bytes) -> None:
    for size in (0, 1, 5, 100, 1 << 31):
        assert snappy_blocks(memoryview(stream), size) is None or (stream[:1] == b"\0" and size == 0)


def test_threads_and_processes_read_the_same(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.parquet", rows(20 + number), compression="zstd" if number == 2 else "snappy")
    source = listed(tmp_path)
    expected = contents(source)
    copy = pickle.loads(pickle.dumps(source))
    assert not copy.reader._places
    order = np.random.default_rng(0).integers(0, len(expected), 1500).tolist()
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(copy.encoded, order))
    assert all(content.tobytes() == expected[index] for index, content in zip(order, read, strict=True))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert [content.tobytes() for content in pool.map(source.encoded, range(63))] == expected


def test_names_give_shard_and_row_and_can_be_left_out(tmp_path: Path) -> None:
    write(tmp_path / "a/0.parquet", rows(9, 100))
    write(tmp_path / "a/1.parquet", rows(5, 100))
    source = listed(tmp_path)
    assert [source.name(index) for index in (0, 8, 9, 13)] == [
        "a/0.parquet/0", "a/0.parquet/8", "a/1.parquet/0", "a/1.parquet/4"
    ]  # fmt: skip
    left_out = frozenset({"a/0.parquet/8", "a/1.parquet/0", "b/0.parquet/77", "a/0.parquet/0"})
    found = listed(tmp_path, excluded=left_out)
    kept = [index for index in range(14) if source.name(index) not in left_out]
    assert [found.name(index) for index in range(11)] == [source.name(index) for index in kept]
    assert contents(found) == [source.encoded(index).tobytes() for index in kept]
    assert found.labels.tolist() == source.labels[kept].tolist() and found.listing != source.listing
    for name in ("a/0.parquet/9", "a/0.parquet/x", "a/1.parquet/-1", "a/1.parquet/", "a/1.parquet/²"):
        with pytest.raises(
            UserError, match=r"data\.exclude: a/.\.parquet/.* the shard has no such row; correct the list"
        ):
            listed(tmp_path, excluded=frozenset({name}))


def test_the_listing_tells_shards_apart_not_folders(tmp_path: Path) -> None:
    write(tmp_path / "a/0.parquet", rows(9, 100))
    write(tmp_path / "b/0.parquet", rows(9, 100))
    before = listed(tmp_path / "a").listing
    assert listed(tmp_path / "b").listing == before
    write(tmp_path / "b/0.parquet", rows(9, 101))
    assert listed(tmp_path / "b").listing != before


def test_columns_that_are_meant_are_found(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"

    def columns(shown: Any, asked: Asked | None = None) -> tuple[str, str]:
        write(path, shown)
        source = listed(tmp_path, asked=asked or Asked())
        assert contents(source) == [b"a", b"b"] and source.labels.tolist() == [0, 1]
        return source.reader.columns.leaf, source.reader.columns.label

    base = table([(b"a", 0), (b"b", 1)])
    assert columns(base) == ("image.bytes", "label")
    assert columns(base.rename_columns(["img", "fine"]).append_column("id", pa.array(["x", "y"]))) == (
        "img.bytes",
        "fine",
    )
    assert columns(base.append_column("number", pa.array([5, 6]))) == ("image.bytes", "label")
    plain = pa.table({"jpg": pa.array([b"a", b"b"], pa.large_binary()), "cls": pa.array([0, 1], pa.int8())})
    assert columns(plain) == ("jpg", "cls")
    classes = table([(b"a", 0), (b"b", 1)], label="kind").append_column("number", pa.array([5, 6]))
    assert columns(classes) == ("image.bytes", "kind")
    other = base.append_column("mask", pa.array([b"m", b"m"])).append_column("number", pa.array([0, 1]))
    assert columns(other, Asked("image", "number")) == ("image.bytes", "number")


@pytest.mark.parametrize(
    ("change", "asked", "message"),
    [
        (lambda t: t.drop_columns(["label"]), Asked(), "has no such column, only image, where one column of whole"),
        (lambda t: t.drop_columns(["image"]), Asked(), "has no such column, only label, where one column of bytes"),
        (lambda t: t.rename_columns(["image", "fine"]).append_column("coarse", t["label"]), Asked(),
         "has fine, coarse, where one column of whole numbers must hold the labels; set data.label_column"),
        (lambda t: t.rename_columns(["a", "label"]).append_column("b", t["image"]), Asked(),
         "has a, b, where one column of bytes, or structs with bytes must hold the images; set data.image_column"),
        (lambda t: t, Asked("img"), "has image, where 'img' of bytes"),
        (lambda t: t, Asked(None, "image"), "has label, where 'image' of whole numbers"),
        (lambda t: t.set_column(1, "label", pa.array(["ape"] * 3)), Asked(), "only image, label, where one"),
        (lambda t: t.set_column(1, "label", pa.array([0.0] * 3)), Asked(), "where one column of whole numbers"),
        (lambda t: t.set_column(1, "label", pa.array([[0]] * 3)), Asked(), "where one column of whole numbers"),
        (lambda t: t.set_column(0, "image", pa.array([[b"a"]] * 3)), Asked(), "where one column of bytes"),
        (lambda t: t.set_column(0, "image", pa.array([b"a"] * 3, pa.binary_view())), Asked(),
         "where one column of bytes, or structs with bytes (image is binary_view), must hold the images"),
        (lambda t: t.set_column(0, "image", pa.array([{"bytes": [b"a"]}] * 3)), Asked(), "where one column of bytes"),
        (lambda t: t.append_column("label", t["label"]), Asked(), "has label, label, where one column of whole"),
        (lambda t: t.set_column(1, "label", pa.array([0, None, 1])), Asked(), "has no label in row 1 (label is null)"),
        (lambda t: t.set_column(1, "label", pa.array([0, 1, 3])), Asked(), "0.parquet/2 in {root} has label 3, data"),
        (lambda t: t.set_column(1, "label", pa.array([0, -1, 1])), Asked(), "0.parquet/1 in {root} has label -1"),
        (lambda t: t.set_column(1, "label", pa.array([0, 1, 2**64 - 1], pa.uint64())), Asked(), "cannot be read as"),
        (lambda t: t.slice(0, 0), Asked(), "hold no sample"),
        (lambda t: t.replace_schema_metadata({b"huggingface": b"{"}), Asked(), "has metadata 'huggingface' that"),
        (lambda t: t.replace_schema_metadata({b"huggingface": b"[" * 100_000}), Asked(), "'huggingface' that are"),
        (lambda t: table([(b"a", 0)], names=["ape", "b\n"]), Asked(), "has the class b\\n, a name with a line end"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, change: Callable[[Any], Any], asked: Asked, message: str
) -> None:
    write(tmp_path / "0.parquet", change(table([(b"a", 0), (b"b", 1), (b"c", 2)])))
    assert message.format(root=tmp_path) in refusal(tmp_path, asked=asked)


def refusal(root: Path, **options: Any) -> str:
    """The message, which is one line and begins with the setting."""
    with pytest.raises(UserError) as caught:
        listed(root, **options)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(("data.some_shards: ", "data.path: "))
    return message


@pytest.mark.parametrize(("encoding", "number"), [("DELTA_LENGTH_BYTE_ARRAY", 6), ("DELTA_BYTE_ARRAY", 7)])
def test_encodings_that_expand_are_refused(tmp_path: Path, encoding: str, number: int) -> None:
    write(tmp_path / "0.parquet", rows(3), use_dictionary=False, column_encoding={"image.bytes": encoding})
    assert f"has images in parquet's encoding {number}, not plain or by a dictionary" in refusal(tmp_path)


@pytest.mark.parametrize(
    "described",
    [
        b"null",
        b"{}",
        b'{"info": null}',
        b'{"info": {"features": []}}',
        b'{"info": {"features": {"label": 5}}}',
        b"\xff",
    ],
)
def test_metadata_of_others_name_no_classes(tmp_path: Path, described: bytes) -> None:
    write(tmp_path / "0.parquet", table([(b"a", 0)]).replace_schema_metadata({b"huggingface": described}))
    if described == b"\xff":
        assert "are no JSON" in refusal(tmp_path)
    else:
        assert listed(tmp_path).class_names == ("0", "1", "2")


def test_shards_of_another_data_set_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", rows(3, 100))
    write(tmp_path / "1.parquet", table(rows(3, 100), names=["ape", "cat", "bee"]))
    assert "1.parquet has other columns or names of classes than 0.parquet" in refusal(tmp_path)


def test_classes_without_samples(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", rows(4, 100))
    assert f"1 of 3 classes have no sample in {tmp_path}/0.parquet and the like, such as label 2 (cat)" in refusal(
        tmp_path, every_class=True
    )


def test_the_index_of_a_sample_takes_few_bytes(tmp_path: Path) -> None:
    """16 of rows and labels; a million samples take 16 MB."""
    write(tmp_path / "0.parquet", [(b"%d" % number, 0) for number in range(3000)], row_group_size=1000)
    source = listed(tmp_path)
    assert len(pickle.dumps(source)) < 3000 * 16 + 4000
    contents(source)
    assert sum(found.nbytes for found in source.reader._places.values()) == 3000 * 24


def test_large_row_groups_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "0.parquet", rows(12), compression="zstd")
    source = listed(tmp_path)
    expected = contents(source)
    monkeypatch.setattr(parquet_reader, "LARGE", 0)
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(4) as pool:
        assert [found.tobytes() for found in pool.map(copy.encoded, range(12))] == expected
    assert copy.reader._large_group.cache_info().currsize == 1
    monkeypatch.setattr(parquet_footer, "MOST_BYTES_IN_GROUP", 1000)
    assert "has a row group with " in refusal(tmp_path)


def test_an_image_of_too_many_bytes_is_not_delivered(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", [(os.urandom(5000), 0), (b"", 0)])
    source = listed(tmp_path)
    for _ in range(2):
        with pytest.raises(OSError, match="has 5,000 bytes, more than 4,999"):
            source.encoded(0, most=4999)
        assert len(source.encoded(0, most=5000)) == 5000
        assert len(source.encoded(1)) == 0
