"""Parquet files that are damaged, or that hold what nobody expects of images and labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.fuzz.inputs import parquet_files
from tests.fuzz.inputs.mutations import thrift
from tests.fuzz.inputs.mutations.files import THINGS
from tests.fuzz.inputs.mutations.names import STEMS
from tests.fuzz.inputs.mutations.registry import mutation
from tests.fuzz.inputs.pictures import made
from tests.fuzz.inputs.place import Place
from tests.fuzz.mutations.damage import DAMAGES

LABELS = (-(2**63), -2, -1, 0, 2, 3, 99, 2**31, 2**62, 2**63 - 1)
ENCODINGS = ("PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY", "BYTE_STREAM_SPLIT", "RLE_DICTIONARY")
Table = Any
"""A pyarrow Table with the columns image and label."""


def chosen(rng: Random, place: Place) -> Path:
    return rng.choice(sorted(place.data.glob(f"*{parquet_files.SUFFIX}")))


def _footer(content: bytes) -> int:
    """Return the byte at which the footer begins."""
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


@mutation("parquet")
def bytes_damaged(rng: Random, place: Place) -> str:
    path, damage = chosen(rng, place), rng.choice(DAMAGES)
    path.write_bytes(damage(rng, path.read_bytes()))
    return f"{damage.__name__} of {path.name}"


def _on_region(name: str, region: Callable[[int, int], tuple[int, int]]) -> None:
    @mutation("parquet", name)
    def act(rng: Random, place: Place) -> str:
        path, damage = chosen(rng, place), rng.choice(DAMAGES)
        content = path.read_bytes()
        begin, end = region(_footer(content), len(content))
        changed = content[:begin] + damage(rng, content[begin:end]) + content[end:]
        path.write_bytes(changed)
        return f"{damage.__name__} of {name} of {path.name}"


_on_region("the pages", lambda footer, size: (4, footer))
_on_region("the footer", lambda footer, size: (footer, size - 8))
_on_region("the length", lambda footer, size: (size - 8, size))


@mutation("parquet")
def footer_made_up(rng: Random, place: Place) -> str:
    """A footer whose length is right, and what it says is not."""
    path = chosen(rng, place)
    content = path.read_bytes()
    begin = _footer(content)
    footer, _ = thrift.read(content, begin)
    said = [thrift.edit(rng, footer) for _ in range(rng.choice((1, 1, 1, 3)))]
    written = thrift.written(footer)
    path.write_bytes(content[:begin] + written + len(written).to_bytes(4, "little") + content[-4:])
    return f"footer of {path.name}: {'; '.join(said)}"


@mutation("parquet")
def page_header_made_up(rng: Random, place: Place) -> str:
    """The first page of the file, or the first of another column; what follows it may lie elsewhere than it did."""
    import pyarrow.parquet as pq

    path = chosen(rng, place)
    about = pq.read_metadata(path)
    column = about.row_group(rng.randrange(about.num_row_groups)).column(rng.randrange(about.num_columns))
    begin = min(at for at in (column.data_page_offset, column.dictionary_page_offset) if at is not None)
    content = path.read_bytes()
    header, end = thrift.read(content, begin)
    said = thrift.edit(rng, header)
    written = thrift.written(header)
    path.write_bytes(content[:begin] + written + content[end:])
    return f"page of {column.path_in_schema} in {path.name}: {said}"


@mutation("parquet")
def no_regular_file(rng: Random, place: Place) -> str:
    path, name = chosen(rng, place), rng.choice(list(THINGS))
    path.unlink()
    THINGS[name](rng, path)
    return f"{path.name} is {name}"


@mutation("parquet")
def encrypted(rng: Random, place: Place) -> str:
    path = chosen(rng, place)
    content = path.read_bytes()
    path.write_bytes(b"PARE" + content[4:-4] + b"PARE")
    return f"{path.name} says that it is encrypted"


@mutation("parquet")
def shards_under_other_names(rng: Random, place: Place) -> str:
    path = chosen(rng, place)
    stem, odd = os.fsencode(path.name.partition("-")[0]), rng.choice(STEMS)[:200].replace(b"/", b"")
    name = rng.choice(
        (stem + b"-00000-of-00009.parquet", stem + b".parquet", stem + b"-x.parquet", b"." + os.fsencode(path.name),
         b"test-00000-of-00001.parquet", b"valid-00000-of-00001.parquet", stem + b"-" + odd + b".parquet")
    )  # fmt: skip
    os.rename(path, os.path.join(os.fsencode(place.data), name))
    return f"{path.name} is {name!r}"


@mutation("parquet")
def in_a_folder_of_its_own(rng: Random, place: Place) -> str:
    path = chosen(rng, place)
    folder = place.data / rng.choice(("data", "train", "test", "other", "validation"))
    folder.mkdir()
    os.rename(path, folder / path.name)
    return f"{path.name} in {folder.name}"


@mutation("parquet")
def columns_are_given(rng: Random, place: Place) -> str:
    for key in rng.choice((("image",), ("label",), ("image", "label"))):
        names = ("image", "label", "image.bytes", "", "bytes", "x" * 5_000, "no\nname", "\x1b[31m", "caf\u00e9", "[*]")
        place.config["data"][f"{key}_column"] = rng.choice(names)
    return f"columns {place.config['data']!r:.200}"


Change = Callable[[Random, Table], Table]


def _metadata(path: Path) -> dict[bytes, bytes]:
    return dict(parquet_files.read(path).schema.metadata)


def _on_table(change: Change) -> Change:
    @mutation("parquet", change.__name__)
    def act(rng: Random, place: Place) -> str:
        """Change one shard, or all of them."""
        paths = [chosen(rng, place)] if rng.random() < 0.5 else sorted(place.data.glob("*.parquet"))
        for path in paths:
            parquet_files.write(path, change(rng, parquet_files.read(path)))
        return f"{change.__name__} in {', '.join(path.name for path in paths)}"

    return change


def _with(content: Table, name: str, array: Any, called: str | None = None) -> Table:
    import pyarrow as pa

    at = content.schema.names.index(name)
    return content.set_column(at, pa.field(called or name, array.type), array)


@_on_table
def labels_of_another_type(rng: Random, content: Table) -> Table:
    import pyarrow as pa

    count = len(content)
    arrays = (
        lambda: pa.array([True] * count),
        lambda: pa.array([0.5] * count),
        lambda: pa.array([float("nan")] * count),
        lambda: pa.array(["1"] * count),
        lambda: pa.array([[1]] * count),
        lambda: pa.array([{"a": 1}] * count),
        lambda: pa.array([b"\1"] * count),
        lambda: pa.array(np.zeros(count, dtype=np.uint8)),
        lambda: pa.array(np.full(count, 2**64 - 1, dtype=np.uint64)),
        lambda: pa.array(np.zeros(count, dtype=np.int16)).dictionary_encode(),
        lambda: pa.array(["ape", "bee"] * count)[:count].dictionary_encode(),
        lambda: pa.array([0] * count, pa.timestamp("s")),
        lambda: pa.array([1] * count, pa.decimal128(10, 0)),
        lambda: pa.array([None] * count, pa.int64()),
        lambda: pa.nulls(count),
    )
    return _with(content, "label", rng.choice(arrays)())


@_on_table
def labels_that_no_class_has(rng: Random, content: Table) -> Table:
    import pyarrow as pa

    labels = content["label"].to_pylist()
    for number in rng.sample(range(len(labels)), rng.choice((1, 1, len(labels)))):
        labels[number] = rng.choice((None, *LABELS))
    return _with(content, "label", pa.array(labels, pa.int64()))


@_on_table
def images_of_another_type(rng: Random, content: Table) -> Table:
    import pyarrow as pa

    images = [row["bytes"] for row in content["image"].to_pylist()]
    arrays = (
        lambda: pa.array(images, pa.binary()),
        lambda: pa.array(images, pa.large_binary()),
        lambda: pa.array([image[:60].ljust(60, b"\0") for image in images], pa.binary(60)),
        lambda: pa.array(images, pa.binary()).dictionary_encode(),
        lambda: pa.array(["text"] * len(images)),
        lambda: pa.array([[image] for image in images]),
        lambda: pa.array([{"bytes": [image]} for image in images]),
        lambda: pa.array([{"bytes": {"bytes": image}} for image in images]),
        lambda: pa.array([{"path": "x.png"} for _ in images]),
        lambda: pa.array([{"bytes": image, "path": None} for image in images]),
        lambda: pa.array([{"bytes": image} for image in images], pa.struct([("bytes", pa.large_binary())])),
        lambda: pa.nulls(len(images)),
    )
    return _with(content, "image", rng.choice(arrays)())


@_on_table
def images_that_are_null(rng: Random, content: Table) -> Table:
    import pyarrow as pa

    images = content["image"].to_pylist()
    for number in rng.sample(range(len(images)), rng.choice((1, 1, len(images)))):
        images[number] = rng.choice((None, {"bytes": None, "path": "x.png"}, {"bytes": b"", "path": None}))
    return _with(content, "image", pa.array(images, content.schema.field("image").type))


@_on_table
def columns_of_other_names(rng: Random, content: Table) -> Table:
    odd = ("image", "label", "image.bytes", "", "a.b", "x" * 10_000, *(stem.decode(errors="replace") for stem in STEMS))
    return content.rename_columns([rng.choice((name, rng.choice(odd))) for name in content.schema.names])


@_on_table
def more_columns(rng: Random, content: Table) -> Table:
    import pyarrow as pa

    names = rng.choice((("image",), ("label",), ("other",), ("image.bytes",), tuple(map(str, range(2_000)))))
    for name in names:
        content = content.append_column(name, pa.array([0] * len(content)))
    return content


@_on_table
def other_metadata(rng: Random, content: Table) -> Table:
    names: tuple[object, ...] = (
        ["ape", "bee"],
        ["ape", "ape", "ape"],
        ["ape", "bee", 3],
        {"ape": 0},
        "ape",
        [],
        ["", "", ""],
        ["a\nb", "\x1b[31m", "c"],
        ["\ud800", "b", "c"],
        [str(number) for number in range(100_000)],
        None,
    )
    texts = (
        b"", b"{}", b"[]", b"null", b'{"info": {"features": []}}', b'{"info": {"features": {"label": []}}}',
        b"[" * 100_000, b"\xff\xfe", b'{"info": ' * 50_000, b"1" * 5_000,
        b'{"info": {"features": {"label": {"_type": 1}}}}',
    )  # fmt: skip
    told = rng.choice((rng.choice(texts), parquet_files.features(rng.choice(names))[b"huggingface"]))
    return content.replace_schema_metadata({b"huggingface": told})


@_on_table
def rows_moved(rng: Random, content: Table) -> Table:
    """No rows, some of them, or each a hundred times."""
    count = len(content)
    rows = rng.choice(([], [0], list(range(count))[::-1], list(range(count)) * 100))
    import pyarrow as pa

    return content.take(pa.array(rows, pa.int64()))


@mutation("parquet")
def one_image_for_many_rows(rng: Random, place: Place) -> str:
    """A dictionary of one large image: a small file stands for gigabytes."""
    import pyarrow as pa

    path, count = chosen(rng, place), rng.choice((3, 300))
    image = pa.array([made("bmp", "plain", 1) + rng.randbytes(2 << 20)], pa.binary())
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, dtype=np.int32)), image)
    labels = np.arange(count, dtype=np.int64) % 3
    content = pa.table({"image": column, "label": pa.array(labels)}).replace_schema_metadata(_metadata(path))
    # Else pyarrow would store that it was a dictionary, unlike in the other shards.
    parquet_files.write(path, content, row_group_size=count, store_schema=False)
    return f"one image for {count} rows of {path.name}"


@mutation("parquet")
def written_otherwise(rng: Random, place: Place) -> str:
    """Write the same rows in other encodings, compressions, pages and row groups."""
    import pyarrow as pa

    options: dict[str, Any] = {
        "compression": rng.choice(("none", "snappy", "gzip", "brotli", "zstd", "lz4")),
        "data_page_version": rng.choice(("1.0", "2.0")),
        "use_dictionary": rng.random() < 0.5,
        "data_page_size": rng.choice((1, 1_000, 1 << 20)),
        "row_group_size": rng.choice((1, 3, 1 << 20)),
        "write_statistics": rng.random() < 0.5,
        "write_page_index": rng.random() < 0.5,
        "write_page_checksum": rng.random() < 0.5,
        "store_schema": rng.random() < 0.5,
        "version": rng.choice(("1.0", "2.4", "2.6")),
    }
    if rng.random() < 0.4:
        options |= {"use_dictionary": False, "column_encoding": {"image.bytes": rng.choice(ENCODINGS[:-1])}}
    for path in sorted(place.data.glob("*.parquet")):
        content = parquet_files.read(path)
        try:
            parquet_files.write(path, content, **options)
        except (pa.ArrowException, OSError):  # Not every combination can be written.
            parquet_files.write(path, content, compression=options["compression"])
    return f"{options}"
