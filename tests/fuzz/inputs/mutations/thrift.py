"""Structs in Thrift's compact encoding, taken apart and put together again, types kept.

Parquet's footer and the header of each page are such structs.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

Value = list[Any]
"""A type and its value: a number, bytes, a list of values, or a list of fields: [number, value]."""
STOP, TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, STRUCT = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12)
NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 7, 8, 100, 2**16, 2**20, 2**30, 2**31 - 1, 2**40, 2**63 - 1)
TEXTS = (b"", b"image", b"bytes", b"label", b"\xff\xfe", b"a\nb", b"\x1b[31m", b"x" * 100_000, bytes(10))


def read(content: bytes, at: int = 0) -> tuple[Value, int]:
    """Return the struct that begins at a byte, and the first byte behind it."""
    return _read(content, at, STRUCT)


def _read(content: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind == STRUCT:
        return _read_struct(content, at)
    if kind in (LIST, SET):
        return _read_list(content, at, kind)
    if kind in (TRUE, FALSE, BYTE):
        return [kind, content[at]], at + 1
    if kind == DOUBLE:
        return [kind, content[at : at + 8]], at + 8
    number, at = _varint(content, at)
    if kind == BINARY:
        return [kind, content[at : at + number]], at + number
    return [kind, (number >> 1) ^ -(number & 1)], at


def _read_struct(content: bytes, at: int) -> tuple[Value, int]:
    fields: list[Any] = []
    number = 0
    while (head := content[at]) & 15 != STOP:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            stored, at = _varint(content, at)
            number = (stored >> 1) ^ -(stored & 1)
        kind = head & 15
        value, at = ([kind, None], at) if kind in (TRUE, FALSE) else _read(content, at, kind)
        fields.append([number, value])
    return [STRUCT, fields], at + 1


def _read_list(content: bytes, at: int, kind: int) -> tuple[Value, int]:
    head, at = content[at], at + 1
    size, at = (head >> 4, at) if head >> 4 < 15 else _varint(content, at)
    found = []
    for _ in range(size):
        value, at = _read(content, at, head & 15)
        found.append(value)
    return [kind, found], at


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (content[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if content[at - 1] < 128:
            return value, at


def written(value: Value) -> bytes:
    kind, inner = value
    if kind == STRUCT:
        return b"".join(_field(*field) for field in inner) + b"\0"
    if kind in (LIST, SET):
        of = inner[0][0] if inner else STRUCT
        return bytes([0xF0 | of]) + _number(len(inner)) + b"".join(map(written, inner))
    if kind in (TRUE, FALSE, BYTE):
        return bytes([inner if inner is not None else kind])
    if kind == BINARY:
        return _number(len(inner)) + bytes(inner)
    return bytes(inner) if kind == DOUBLE else _number(_folded(inner))


def _field(number: int, value: Value) -> bytes:
    """A field's number stands in full, however far it is from the one before."""
    head = bytes([value[0]]) + _number(_folded(number))
    return head if value[0] in (TRUE, FALSE) else head + written(value)


def _folded(number: int) -> int:
    return ((number << 1) ^ (number >> 63)) % 2**64


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _containers(value: Value) -> Iterator[list[Any]]:
    """Lists that hold fields, or values, at any depth."""
    kind, inner = value
    if kind in (STRUCT, LIST, SET):
        yield inner
        for each in inner:
            yield from _containers(each[1] if kind == STRUCT else each)


def _leaves(value: Value) -> Iterator[Value]:
    kind, inner = value
    if kind in (STRUCT, LIST, SET):
        for each in inner:
            yield from _leaves(each[1] if kind == STRUCT else each)
    else:
        yield value


def edit(rng: Random, value: Value) -> str:
    """Change one thing in a struct."""
    how = rng.choice(("leaf", "leaf", "leaf", "gone", "twice", "moved", "kind", "deep"))
    if how in ("leaf", "kind"):
        return _edit_leaf(rng, rng.choice(list(_leaves(value))), how)
    container = rng.choice([found for found in _containers(value) if found])
    at = rng.randrange(len(container))
    if how == "gone":
        del container[at]
    elif how == "twice":
        container[at:at] = [container[at]] * rng.choice((1, 1, 20, 5_000))
    elif how == "moved":
        rng.shuffle(container)
    else:
        nested: Value = [STRUCT, []]
        for _ in range(rng.choice((10, 17, 100))):
            nested = [STRUCT, [[1, nested]]]
        value[1].append([99, nested]) if rng.random() < 0.5 else value[1].insert(0, [99, nested])
    return how


def _edit_leaf(rng: Random, leaf: Value, how: str) -> str:
    before = str(leaf)[:40]
    if how == "kind":
        leaf[0] = rng.choice((TRUE, BYTE, I32, I64, 11, 13, 15))
        leaf[1] = rng.choice(NUMBERS) % 128 if leaf[0] in (TRUE, BYTE) else rng.choice(NUMBERS)
    elif leaf[0] == BINARY:
        leaf[1] = rng.choice(TEXTS)
    elif leaf[0] in (TRUE, FALSE):
        leaf[0] = TRUE + FALSE - leaf[0]
    else:
        leaf[1] = rng.choice(NUMBERS) if leaf[0] in (I16, I32, I64) else leaf[1]
    return f"{before} is {str(leaf)[:40]}"
