"""Changes to the chunks of a PNG, with right checksums."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from random import Random

from tests.fuzz.inputs.mutations.jpeg import exif
from tests.fuzz.mutations.damage import Damage, flip
from tests.fuzz.mutations.registry import place

EDITS: dict[str, Damage] = {}
SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIDES = (0, 1, 24, 32_767, 65_535, 20_000, 100_000, 2**31 - 1, 2**31, 2**32 - 1)
Chunk = tuple[bytes, bytes]


def edit(name: str) -> Callable[[Damage], Damage]:
    def add(act: Damage) -> Damage:
        EDITS[name] = act
        return act

    return add


def chunks(content: bytes) -> list[Chunk]:
    found, at = [], 8
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        found.append((kind, content[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def joined(parts: list[Chunk]) -> bytes:
    return SIGNATURE + b"".join(chunk(*part) for part in parts)


def _head(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    return joined([(kind, change(part) if kind == b"IHDR" else part) for kind, part in chunks(content)])


@edit("dimensions")
def dimensions(rng: Random, content: bytes) -> bytes:
    sides = struct.pack(">II", rng.choice(SIDES), rng.choice((20, *SIDES)))
    return _head(content, lambda part: sides + part[8:])


@edit("1 bit and dimensions")
def dimensions_of_bits(rng: Random, content: bytes) -> bytes:
    """Make an image of one bit a pixel with large sides. Its rows are zeros, which take no space, or too few."""
    side = rng.choice((2_000, 7_700, 7_700, 30_000))
    row = zlib.compress(bytes((side // 8 + 1) * rng.choice((side, side, 1_000))), 1)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return joined([(b"IHDR", head), (b"IDAT", row), (b"IEND", b"")])


@edit("kind of pixels")
def kind_of_pixels(rng: Random, content: bytes) -> bytes:
    head = bytes([rng.choice((0, 1, 2, 3, 4, 8, 16, 32)), rng.choice(range(8)), 0, 0, rng.choice((0, 0, 1, 2))])
    return _head(content, lambda part: part[:8] + head)


@edit("methods")
def methods(rng: Random, content: bytes) -> bytes:
    return _head(content, lambda part: part[:10] + bytes([rng.choice((0, 1, 255)), rng.choice((0, 1)), part[12]]))


@edit("wrong checksum")
def checksum(rng: Random, content: bytes) -> bytes:
    parts = [chunk(*part) for part in chunks(content)]
    number = place(rng, len(parts))
    parts[number] = parts[number][:-4] + rng.randbytes(4)
    return SIGNATURE + b"".join(parts)


@edit("length of a chunk")
def length(rng: Random, content: bytes) -> bytes:
    parts = [chunk(*part) for part in chunks(content)]
    number = place(rng, len(parts))
    said = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 1_000_000))
    parts[number] = struct.pack(">I", said) + parts[number][4:]
    return SIGNATURE + b"".join(parts)


@edit("pixels damaged")
def pixels(rng: Random, content: bytes) -> bytes:
    """Before they are compressed: a right stream of odd rows."""

    def change(part: bytes) -> bytes:
        rows = zlib.decompress(part)
        how = rng.choice(("flip", "cut", "more", "filter", "none"))
        if how == "filter":
            rows = bytes([rng.choice((4, 5, 255))]) + rows[1:]
        elif how == "flip":
            rows = flip(rng, rows)
        else:
            rows = {"cut": rows[: place(rng, len(rows))], "more": rows + bytes(100_000), "none": b""}[how]
        return zlib.compress(rows)

    parts = chunks(content)
    data = b"".join(part for kind, part in parts if kind == b"IDAT")
    others = [part for part in parts if part[0] != b"IDAT"]
    return joined([*others[:-1], (b"IDAT", change(data)), others[-1]])


@edit("stream of pixels damaged")
def stream(rng: Random, content: bytes) -> bytes:
    return joined([(kind, flip(rng, part) if kind == b"IDAT" else part) for kind, part in chunks(content)])


@edit("a bomb of pixels")
def bomb(rng: Random, content: bytes) -> bytes:
    """Far more than the image takes."""
    data = zlib.compress(bytes(200 << 20)) if rng.random() < 0.2 else zlib.compress(bytes(20 << 20))
    return joined([(kind, data if kind == b"IDAT" else part) for kind, part in chunks(content)])


@edit("a bomb of text")
def text_bomb(rng: Random, content: bytes) -> bytes:
    data = zlib.compress(bytes(100 << 20))
    added = rng.choice(
        ((b"zTXt", b"Comment\0\0" + data), (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + data), (b"iCCP", b"x\0\0" + data))
    )
    parts = chunks(content)
    return joined([parts[0], *[added] * rng.choice((1, 1, 8)), *parts[1:]])


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
        (b"PLTE", bytes(3 * rng.choice((0, 1, 2, 256, 257, 1_000)))),
        (b"PLTE", bytes(100)),
        (b"tRNS", bytes(rng.choice((0, 1, 2, 6, 256, 1_000)))),
        (b"gAMA", struct.pack(">I", rng.choice((0, 1, 45_455, 10_000_000, 2**32 - 1)))),
        (b"cHRM", rng.randbytes(32)),
        (b"sBIT", bytes(3)),
        (b"bKGD", bytes(6)),
        (b"pHYs", rng.randbytes(9)),
        (b"acTL", struct.pack(">II", rng.choice((0, 1, 2**31)), 0)),
        (b"fcTL", struct.pack(">IIIIIHHBB", 0, 1_000, 1_000, 0, 0, 1, 1, 0, 0)),
        (b"tEXt", b"Software\0" + bytes(range(256))),
        (b"iTXt", b"x\0\1\0\0\0" + b"no stream"),
        (b"eXIf", exif(rng)[6:]),
        (b"QQQQ", b"critical and unknown"),
        (b"\0\xff\n\x1b", b""),
    ]
    parts = chunks(content)
    at = rng.choice((0, 1, 1, 1, len(parts) - 1, len(parts)))
    return joined([*parts[:at], *rng.sample(added, rng.choice((1, 1, 3))), *parts[at:]])


@edit("cut behind a chunk")
def cut(rng: Random, content: bytes) -> bytes:
    parts = chunks(content)
    return joined(parts[: place(rng, len(parts))])
