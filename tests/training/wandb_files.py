"""A reader of the files that W&B writes offline: a log in LevelDB's format, with a message of protobuf a record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEADER, _BLOCK, _PREFIX = 7, 32768, 7


def records(path: Path) -> Iterator[Any]:
    """Return the messages of a file. A piece of a record has a checksum, a length and a kind before it."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), _HEADER, b""
    while place + _PREFIX <= len(content):
        if _BLOCK - place % _BLOCK < _PREFIX:  # Too little of the block is left for another piece.
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + _PREFIX : place + _PREFIX + length]
        place += _PREFIX + length
        if kind in (1, 4):  # A whole record, or the last piece of one.
            yield Record.FromString(parts)
            parts = b""


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of history, by key."""
    return [_items(record.history.item) for record in records(path) if record.HasField("history")]


def config(path: Path) -> dict[str, Any]:
    """Return the config of the run."""
    return next(_items(record.run.config.update) for record in records(path) if record.HasField("run"))


def summary(path: Path) -> dict[str, Any]:
    """Return the run's summary, as far as it was set."""
    found: dict[str, Any] = {}
    for record in records(path):
        if record.HasField("summary"):
            found |= _items(record.summary.update)
    return found


def _items(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
