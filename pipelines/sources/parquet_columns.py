"""The columns of a parquet file that hold images and labels, and the names of the classes.

Hugging Face's layout: an image is a struct {bytes, path}, a label a whole number. The schema's metadata have a JSON
under the key `huggingface`, which describes each column, and names the classes of a label.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.common.text import some_of
from pipelines.sources.class_list import MOST_CLASSES
from pipelines.sources.tar_headers import UnusableError

IMAGE, LABEL, BYTES = "image", "label", "bytes"
_KEY = b"huggingface"


class NoLabelsError(UnusableError):
    """A file without the column of labels."""

    def __init__(self, message: str, others: Sequence[str]) -> None:
        """`others`: columns that could hold labels."""
        super().__init__(message)
        self.others = others


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read."""

    image: str
    leaf: str
    """The image's bytes: the column itself, or a field of the struct, such as `image.bytes`."""
    label: str
    class_names: tuple[str, ...]
    """Names by label; empty if the file tells none."""


def chosen(schema: Any, image_column: str | None, label_column: str | None) -> Columns:
    """Return the given columns, or those that can be meant alone. Raises UnusableError."""
    features = _features(schema.metadata or {})
    images = [field.name for field in schema if _leaf(field) is not None]
    numbers = [field.name for field in schema if pa.types.is_integer(field.type)]
    named = [name for name in numbers if _is_class(features.get(name))]
    kind = f"bytes, or structs with bytes{_of_what(schema, image_column or IMAGE)}"
    image = _column("image", IMAGE, image_column, images, schema.names, kind)
    label = _column("label", LABEL, label_column, named or numbers, schema.names, "whole numbers", numbers)
    leaf = _leaf(schema.field(image))
    assert leaf is not None, image
    return Columns(image, leaf, label, _class_names(features.get(label)))


def _leaf(field: Any) -> str | None:
    """Return the path of the bytes in a column of images; None if it is another column."""
    if _is_bytes(field.type):
        return str(field.name)
    if pa.types.is_struct(field.type) and any(f.name == BYTES and _is_bytes(f.type) for f in field.type):
        return f"{field.name}.{BYTES}"
    return None


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _of_what(schema: Any, name: str) -> str:
    """Return the type of a column that is there and does not fit, for a message."""
    return f" ({name} is {schema.field(name).type})," if schema.names.count(name) == 1 else ""


def _column(
    what: str,
    usual: str,
    given: str | None,
    candidates: Sequence[str],
    every: Sequence[str],
    kind: str,
    fit: Sequence[str] | None = None,
) -> str:
    """Return the given column, the usual one, or the only candidate. Raises UnusableError."""
    fit = candidates if fit is None else fit
    wanted = given if given is not None else usual if usual in fit else None
    if wanted is None and len(candidates) == 1:
        wanted = candidates[0]
    if wanted is not None and every.count(wanted) == 1 and wanted in fit:
        return wanted
    there = f"has {some_of(candidates)}" if candidates else f"has no such column, only {some_of(every) or 'none'}"
    asked = f"{given!r}" if given is not None else "one column"
    message = f"{there}, where {asked} of {kind} must hold the {what}s; set data.{what}_column to the one that does"
    if what == "label" and (given not in every if given is not None else not candidates):
        raise NoLabelsError(message, candidates)
    raise UnusableError(message)


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Return what the metadata say of each column. Raises UnusableError if they cannot be read."""
    if _KEY not in metadata:
        return {}
    try:
        features = json.loads(metadata[_KEY])["info"]["features"]
    except (KeyError, TypeError):  # Another writer's.
        return {}
    except (ValueError, RecursionError):
        raise UnusableError("has metadata 'huggingface' that are no JSON; write it anew") from None
    return features if isinstance(features, dict) else {}


def _is_class(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel"


def _class_names(feature: Any) -> tuple[str, ...]:
    names = feature.get("names") if _is_class(feature) else None
    if names is None:
        return ()
    if not isinstance(names, list) or len(names) > MOST_CLASSES or not all(isinstance(name, str) for name in names):
        raise UnusableError(f"names its classes by what is no list of up to {MOST_CLASSES:,} names; write it anew")
    return tuple(names)
