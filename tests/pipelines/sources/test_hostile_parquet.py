"""Parquet files that somebody has made to be wrong: each is refused in a line, or is what it holds."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.common.errors import UserError
from pipelines.sources.parquet_thrift import read_struct
from pipelines.sources.tar_headers import UnusableError
from tests.pipelines.parquet_files import pa, pq, table, write
from tests.pipelines.pictures import put
from tests.pipelines.sources.test_parquet_shards import LAYOUTS, listed, refusal, rows


@pytest.mark.parametrize("odd", ["pipe", "device", "folder"])
def test_only_files_are_shards(tmp_path: Path, odd: str) -> None:
    put(tmp_path / "0.parquet", odd)
    assert f"0.parquet cannot be read (is a {odd}" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"PAR1PAR1", b"no parquet" * 100, b"PAR1" + bytes(8) + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1"],
)
def test_files_that_are_no_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.parquet").write_bytes(content)
    assert "0.parquet is " in (said := refusal(tmp_path)) and said.endswith("; copy it anew")


def read_all(root: Path) -> str:
    """Read all images. Return why the shards are refused; empty if they are not. Nothing else may be raised."""
    try:
        source = listed(root)
    except UserError as error:
        return str(error)
    for index in range(len(source.labels)):
        with suppress(OSError):
            source.encoded(index)
    return ""


def test_every_truncation_is_found(tmp_path: Path) -> None:
    content = write(tmp_path / "0.parquet", rows(3, 100)).read_bytes()
    for size in [*range(0, len(content), 997), *range(len(content) - 40, len(content))]:
        (tmp_path / "0.parquet").write_bytes(content[:size])
        assert refusal(tmp_path).endswith("; copy it anew")


@pytest.mark.parametrize("change", [0x01, *(pytest.param(change, marks=pytest.mark.slow) for change in (0x55, 0xFF))])
def test_no_byte_of_the_footer_ends_the_process(tmp_path: Path, change: int) -> None:
    """Some of pyarrow's accessors would, such as that of the compression, at a number that it does not know."""
    content = write(tmp_path / "0.parquet", rows(3, 100), store_schema=False).read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    refused = 0
    for at in range(len(content) - 8 - length, len(content)):
        (tmp_path / "0.parquet").write_bytes(content[:at] + bytes([content[at] ^ change]) + content[at + 1 :])
        refused += bool(read_all(tmp_path))
    assert refused > length // 8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_byte_of_the_pages_ends_the_process(tmp_path: Path, layout: str) -> None:
    content = write(tmp_path / "0.parquet", table(rows(3, 100)), **LAYOUTS[layout]).read_bytes()
    draw = np.random.default_rng(len(layout))
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for at in draw.integers(4, end, 60).tolist():
        (tmp_path / "0.parquet").write_bytes(content[:at] + draw.bytes(1) + content[at + 1 :])
        read_all(tmp_path)


HOLDS_LITTLE = """
import sys
from pathlib import Path
from tests.memory import peak
from tests.pipelines.sources.test_parquet_shards import listed
source = listed(Path(sys.argv[1]))
print(len(source.encoded(len(source.labels) - 1)), len(source.encoded(0)))
print(peak())
"""


@pytest.mark.parametrize("alphabet", [pytest.param(256, marks=pytest.mark.slow), 4])
def test_a_dictionary_that_stands_for_terabytes_takes_little_memory(tmp_path: Path, alphabet: int) -> None:
    """300,000 rows of one image of 4 MB. Of four letters, it has too many elements of snappy for a place."""
    content = np.random.default_rng(0).integers(0, alphabet, 4 << 20, dtype=np.uint8).tobytes()
    values = pa.array([content], pa.binary())
    image = pa.DictionaryArray.from_arrays(pa.array(np.zeros(300_000, dtype=np.int32)), values)
    shown = pa.table({"image": image, "label": pa.array(np.zeros(300_000, dtype=np.int64))})
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(tmp_path / "0.parquet", shown.schema, store_schema=False) as writer:
        writer.write_table(shown, row_group_size=300_000)
    assert pq.read_schema(tmp_path / "0.parquet").equals(schema)
    assert (tmp_path / "0.parquet").stat().st_size < 5 << 20
    command = [sys.executable, "-c", HOLDS_LITTLE, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    size, memory = ended.stdout.splitlines()
    assert size == f"{4 << 20} {4 << 20}" and int(memory) < 1500


def test_more_rows_than_bytes_are_refused(tmp_path: Path) -> None:
    """Equal labels take nothing: a file of a kilobyte may declare a million."""
    shown = pa.table({"image": pa.array([b""] * 900_000), "label": pa.array(np.zeros(900_000, dtype=np.int64))})
    write(tmp_path / "0.parquet", shown, row_group_size=300_000, compression="zstd")
    assert "declares 900,000 rows, which it cannot hold" in refusal(tmp_path)


def test_row_groups_of_too_many_rows_are_refused(tmp_path: Path) -> None:
    count = (1 << 20) + 1
    labels = np.random.default_rng(0).integers(0, 2, count)
    shown = pa.table({"image": pa.array([b"x"] * count), "label": pa.array(labels)})
    write(tmp_path / "0.parquet", shown, row_group_size=count, compression="none", use_dictionary=False)
    assert "has a row group of 1,048,577 rows, more than 1,048,576; write it anew with" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x15",
        b"\x1c" * 100,
        b"\x19\xfc\xff\xff\xff\xff\x0f",
        b"\x18\xff\xff\x7f",
        b"\x15" + b"\xff" * 20,
        b"\x1d\x00",
    ],
)
def test_structs_that_are_none(content: bytes) -> None:
    """Some have no end, lists or texts that are longer than the file, or unknown types."""
    with pytest.raises(UnusableError, match="is damaged: its footer, or the header of a page"):
        read_struct(memoryview(content))


def test_a_struct_is_read() -> None:
    """Worked by hand: fields 1 = -3, 2 = true, 3 = b"ab", 20 = [1, 2], 21 = {1: 7}, of integers doubled, odd if < 0."""
    content = bytes([0x15, 5, 0x11, 0x18, 2, *b"ab", 0x09, 40, 0x25, 2, 4, 0x1C, 0x15, 14, 0, 0, 99])
    expected: dict[int, Any] = {1: -3, 2: True, 3: b"ab", 20: [1, 2], 21: {1: 7}}
    assert read_struct(memoryview(content)) == (expected, len(content) - 1)
