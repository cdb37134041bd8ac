"""Parquet files of images, as Hugging Face writes them, to test with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.datasets.parquet import ParquetSettings
from tests.pipelines.pictures import CLASSES

pa = pytest.importorskip("pyarrow", reason="pip install --constraint constraints.txt '.[parquet]'")
pq = pytest.importorskip("pyarrow.parquet", reason="pip install --constraint constraints.txt '.[parquet]'")

Row = tuple[bytes | None, int | None]


def metadata(names: Sequence[str] | None, label: str = "label") -> dict[bytes, bytes]:
    if names is None:
        return {}
    features = {"image": {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def table(rows: Sequence[Row], names: Sequence[str] | None = CLASSES, label: str = "label") -> Any:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": content, "path": f"{number}.png"} for number, (content, _) in enumerate(rows)]
    columns = {"image": pa.array(images, image), label: pa.array([label for _, label in rows], pa.int64())}
    return pa.table(columns).replace_schema_metadata(metadata(names, label))


def write(path: Path, content: Any, **options: Any) -> Path:
    """Write a table, or rows, in row groups of 4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = table(content) if isinstance(content, list) else content
    pq.write_table(found, path, **{"row_group_size": 4, **options})
    return path


def from_folder(folder: Path, out: Path, shards: int = 3, **options: Any) -> Path:
    """Write the images of a folder by class as shards, class after class, named as on the Hub."""
    for part, name in (("train", "train"), ("val", "validation")):
        files = sorted((folder / part).glob("*/*"))
        rows = [(file.read_bytes(), CLASSES.index(file.parent.name)) for file in files]
        for number in range(shards):
            some = rows[number * len(rows) // shards : (number + 1) * len(rows) // shards]
            write(out / f"data/{name}-{number:05}-of-{shards:05}.parquet", some, **options)
    return out


def settings(root: Path, **options: object) -> ParquetSettings:
    small = {"image_size": 16, "evaluation_resize": 16, "number_of_classes": 3, "threads": 1}
    return ParquetSettings.model_validate({"name": "parquet", "path": str(root), **small, **options})
