"""Changes to the chunks of a WebP."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from tests.fuzz.inputs.mutations.jpeg import exif
from tests.fuzz.mutations.damage import Damage, flip
from tests.fuzz.mutations.registry import place

EDITS: dict[str, Damage] = {}
Chunk = tuple[bytes, bytes]


def edit(name: str) -> Callable[[Damage], Damage]:
    def add(act: Damage) -> Damage:
        EDITS[name] = act
        return act

    return add


def chunks(content: bytes) -> list[Chunk]:
    found, at = [], 12
    while at + 8 <= len(content):
        kind, length = struct.unpack("<4sI", content[at : at + 8])
        found.append((kind, content[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


def joined(parts: list[Chunk], size: int | None = None) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2) for kind, part in parts)
    return b"RIFF" + struct.pack("<I", len(body) + 4 if size is None else size) + b"WEBP" + body


@edit("declared size")
def size(rng: Random, content: bytes) -> bytes:
    return joined(chunks(content), rng.choice((0, 4, 12, len(content), 2 * len(content), 2**32 - 1, 2**32 - 10)))


@edit("canvas")
def canvas(rng: Random, content: bytes) -> bytes:
    """Flags and dimensions of a header of the extended kind, which others lack."""
    sides = b"".join(rng.choice((0, 19, 23, 16_382, 16_383, 2**24 - 1)).to_bytes(3, "little") for _ in range(2))
    head = bytes([rng.choice((0, 2, 4, 8, 16, 32, 60, 255)), 0, 0, 0]) + sides
    rest = [part for part in chunks(content) if part[0] != b"VP8X"]
    return joined([(b"VP8X", head), *rest])


@edit("dimensions of the stream")
def dimensions(rng: Random, content: bytes) -> bytes:
    def change(kind: bytes, part: bytes) -> bytes:
        if kind == b"VP8 ":
            return part[:6] + struct.pack("<HH", rng.choice((0, 1, 24, 16_383, 65_535)), rng.choice((20, 16_383)))
        if kind == b"VP8L":
            width, height = rng.choice((0, 23, 16_383)), rng.choice((19, 16_383))
            return part[:1] + struct.pack("<I", width | height << 14) + part[5:]
        return part

    return joined([(kind, change(kind, part)) for kind, part in chunks(content)])


@edit("stream damaged")
def stream(rng: Random, content: bytes) -> bytes:
    wanted = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")
    return joined([(kind, flip(rng, part) if kind in wanted else part) for kind, part in chunks(content)])


@edit("stream cut")
def cut(rng: Random, content: bytes) -> bytes:
    wanted = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")
    return joined([(kind, part[: place(rng, len(part))] if kind in wanted else part) for kind, part in chunks(content)])


@edit("chunks moved or gone")
def moved(rng: Random, content: bytes) -> bytes:
    parts = chunks(content)
    chosen = parts.pop(place(rng, len(parts)))
    for _ in range(rng.choice((0, 1, 2))):
        parts.insert(place(rng, len(parts) + 1), chosen)
    return joined(parts)


@edit("odd chunks")
def odd(rng: Random, content: bytes) -> bytes:
    added: list[Chunk] = [
        (b"EXIF", exif(rng)),
        (b"EXIF", exif(rng)[6:]),
        (b"ICCP", rng.randbytes(100)),
        (b"XMP ", b"<x tiff:Orientation='6'/>"),
        (b"ANIM", bytes(6)),
        (b"ALPH", b"\0" + bytes(480)),
        (b"QQQQ", bytes(1_000)),
        (b"ANMF", rng.randbytes(60)),
    ]
    parts = chunks(content)
    at = rng.choice((0, 1, len(parts)))
    head = (b"VP8X", bytes([0x3C, 0, 0, 0, 23, 0, 0, 19, 0, 0]))
    front = [head] if rng.random() < 0.5 and parts[:1] and parts[0][0] != b"VP8X" else []
    return joined([*front, *parts[:at], rng.choice(added), *parts[at:]])


@edit("lengths of chunks")
def lengths(rng: Random, content: bytes) -> bytes:
    at = 16
    said = struct.pack("<I", rng.choice((0, 1, len(content), 2**31 - 1, 2**32 - 1)))
    return content[:at] + said + content[at + 4 :]
