"""Changes to the directory of a TIFF."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from tests.fuzz.mutations.damage import Damage, flip
from tests.fuzz.mutations.registry import place

EDITS: dict[str, Damage] = {}
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, ORIENTATION = 256, 257, 258, 259, 262, 273, 274
SAMPLES, ROWS, COUNTS, PLANES, PREDICTOR, COLOURS = 277, 278, 279, 284, 317, 320
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES, EXTRA, FORMAT = 322, 323, 324, 325, 338, 339
SHORT, LONG = 3, 4
_SIDES = (0, 1, 7, 24, 100, 20_000, 65_535, 100_000, 2**31 - 1, 2**32 - 1)
Entry = tuple[int, int, int, bytes]
"""Tag, kind, count and the four bytes of the value or of its place."""


def edit(name: str) -> Callable[[Damage], Damage]:
    def add(act: Damage) -> Damage:
        EDITS[name] = act
        return act

    return add


def directory(content: bytes) -> tuple[int, list[Entry]]:
    """Offset of the directory, and its entries. Pillow writes one, in little endian."""
    (at,) = struct.unpack("<I", content[4:8])
    (count,) = struct.unpack("<H", content[at : at + 2])
    rows = [struct.unpack("<HHI4s", content[at + 2 + 12 * i : at + 14 + 12 * i]) for i in range(count)]
    return at, rows


def written(content: bytes, entries: list[Entry], following: int = 0) -> bytes:
    """Append a directory of these entries at the end of the file, and use it."""
    content += b"\0" * (len(content) % 2)
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHI4s", *entry) for entry in sorted(entries))
    return content[:4] + struct.pack("<I", len(content)) + content[8:] + body + struct.pack("<I", following)


def changed(content: bytes, *values: tuple[int, int]) -> bytes:
    """Give some tags other numbers."""
    entries = {entry[0]: entry for entry in directory(content)[1]}
    for tag, value in values:
        entries[tag] = (tag, LONG, 1, struct.pack("<I", value))
    return written(content, list(entries.values()))


@edit("dimensions")
def dimensions(rng: Random, content: bytes) -> bytes:
    return changed(content, (WIDTH, rng.choice(_SIDES)), (HEIGHT, rng.choice((20, *_SIDES))))


@edit("kind of pixels")
def kind_of_pixels(rng: Random, content: bytes) -> bytes:
    tag = rng.choice((BITS, SAMPLES, PHOTOMETRIC, FORMAT, PLANES, PREDICTOR, EXTRA))
    return changed(content, (tag, rng.choice((0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 64, 65_535))))


@edit("several kinds at once")
def several(rng: Random, content: bytes) -> bytes:
    wide = rng.choice(((8, 1), (16, 1), (16, 2), (32, 3), (32, 1), (32, 2), (64, 3), (12, 1), (4, 1), (2, 1)))
    tags = (
        (BITS, wide[0]),
        (FORMAT, wide[1]),
        (SAMPLES, rng.choice((1, 2, 3, 4, 5))),
        (PHOTOMETRIC, rng.choice((0, 1, 2, 5, 6, 8))),
    )
    return changed(content, *rng.sample(tags, rng.choice((2, 3, 4))))


@edit("compression")
def compression(rng: Random, content: bytes) -> bytes:
    kinds = (0, 1, 2, 3, 4, 5, 6, 7, 8, 32_773, 32_946, 34_661, 34_712, 34_925, 50_000, 50_001, 65_000)
    return changed(content, (COMPRESSION, rng.choice(kinds)))


@edit("places of strips")
def strips(rng: Random, content: bytes) -> bytes:
    tag = rng.choice((STRIPS, COUNTS, ROWS))
    return changed(content, (tag, rng.choice((0, 1, 8, 21, len(content), 10 * len(content), 2**31, 2**32 - 1))))


@edit("tiles")
def tiles(rng: Random, content: bytes) -> bytes:
    side = (1, 15, 16, 64, 10_000, 30_000, 2**31, 2**32 - 16)
    entries = {tag: value for tag, *_, value in directory(content)[1]}
    first = struct.unpack("<I", entries.get(STRIPS, b"\x08\0\0\0"))[0]
    return changed(
        content, (TILE_WIDTH, rng.choice(side)), (TILE_HEIGHT, rng.choice(side)), (TILES, first), (TILE_BYTES, 64)
    )


@edit("orientation")
def orientation(rng: Random, content: bytes) -> bytes:
    return changed(content, (ORIENTATION, rng.choice((0, 2, 3, 4, 5, 6, 7, 8, 9, 65_535))))


@edit("counts and kinds of entries")
def counts(rng: Random, content: bytes) -> bytes:
    _, entries = directory(content)
    for _ in range(rng.choice((1, 1, 3))):
        number = place(rng, len(entries))
        tag, kind, count, value = entries[number]
        kind = rng.choice((kind, 0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 18, 99))
        count = rng.choice((count, 0, 1, 2, 1_000, 10**8, 2**31, 2**32 - 1))
        entries[number] = tag, kind, count, rng.choice((value, rng.randbytes(4)))
    return written(content, entries)


@edit("entries gone, twice or unknown")
def entries_gone(rng: Random, content: bytes) -> bytes:
    _, entries = directory(content)
    how = rng.choice(("gone", "twice", "unknown", "thousands"))
    chosen = entries[place(rng, len(entries))]
    if how == "gone":
        entries.remove(chosen)
    elif how == "twice":
        entries.append((chosen[0], chosen[1], chosen[2], rng.randbytes(4)))
    elif how == "unknown":
        entries.append((rng.randrange(65_536), rng.randrange(14), rng.randrange(100), rng.randbytes(4)))
    else:
        entries += [(40_000 + number % 20_000, LONG, 1, bytes(4)) for number in range(60_000)]
    return written(content, entries)


@edit("chain of directories")
def chain(rng: Random, content: bytes) -> bytes:
    """Chain directories: the chain ends outside the file, in itself, or after thousands of others."""
    _, entries = directory(content)
    once = written(content, entries, rng.choice((8, 2**31, len(content), len(content) + len(content) % 2)))
    if rng.random() < 0.7:
        return once
    many = [struct.pack("<HI", 0, len(once) + 6 * number) for number in range(1, 20_000)]
    return written(content, entries, len(once)) + b"".join(many)


@edit("byte order and version")
def order(rng: Random, content: bytes) -> bytes:
    return rng.choice((b"MM\0*", b"II+\0", b"MM\0+", b"II*\0", b"II\0*")) + content[4:]


@edit("directory damaged")
def damaged(rng: Random, content: bytes) -> bytes:
    at, _ = directory(content)
    return content[:at] + flip(rng, content[at:])


@edit("floats out of range")
def floats(rng: Random, content: bytes) -> bytes:
    """32-bit floating point, or integers of any width."""
    at, form = len(content) + len(content) % 2, rng.choice((1, 2, 3, 3, 3))
    values = [rng.choice((0.0, 0.5, 1.0, -1.0, 255.0, 1e30, float("nan"), float("inf"))) for _ in range(480)]
    return changed(
        content + b"\0" * (len(content) % 2) + struct.pack("<480f", *values),
        (WIDTH, 24), (HEIGHT, 20), (BITS, 32), (FORMAT, form), (SAMPLES, 1), (PHOTOMETRIC, 1), (COMPRESSION, 1),
        (STRIPS, at), (COUNTS, 1_920), (ROWS, 20), (PLANES, 1),
    )  # fmt: skip
