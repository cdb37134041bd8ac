"""Parquet files as on the Hugging Face Hub: written, and written anew with other rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = tuple[bytes | None, int | None]
"""An image and its label."""
SUFFIX = ".parquet"


def features(names: object) -> dict[bytes, bytes]:
    """Return metadata that name the classes."""
    told = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": told}}).encode()}


def table(rows: Sequence[Row], names: Sequence[str]) -> Any:
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": content, "path": f"{number}.png"} for number, (content, _) in enumerate(rows)]
    columns = {"image": pa.array(images, image), "label": pa.array([label for _, label in rows], pa.int64())}
    return pa.table(columns).replace_schema_metadata(features(list(names)))


def write(path: Path, content: Any, **options: Any) -> None:
    """Write a table in small row groups."""
    import pyarrow.parquet as pq

    pq.write_table(content, path, **{"row_group_size": 2, **options})


def read(path: Path) -> Any:
    """Return the table of a whole file."""
    import pyarrow.parquet as pq

    return pq.read_table(path, use_threads=False)


def rewritten(path: Path, changed: Mapping[int, bytes]) -> None:
    """Give some rows of a file other images."""
    import pyarrow as pa

    found = read(path)
    images = [
        {**row, "bytes": changed.get(number, row["bytes"])} for number, row in enumerate(found["image"].to_pylist())
    ]
    image = pa.array(images, found.schema.field("image").type)
    write(path, found.set_column(found.schema.get_field_index("image"), found.schema.field("image"), image))
