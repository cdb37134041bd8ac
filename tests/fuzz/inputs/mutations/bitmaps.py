"""Changes to the header of a BMP."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from tests.fuzz.mutations.damage import Damage, flip

EDITS: dict[str, Damage] = {}
_NUMBERS = (-(2**31), -20, -1, 0, 1, 2, 24, 10_000, 20_000, 40_000, 2**31 - 1)


def edit(name: str) -> Callable[[Damage], Damage]:
    def add(act: Damage) -> Damage:
        EDITS[name] = act
        return act

    return add


def _with(content: bytes, at: int, form: str, value: int) -> bytes:
    field = struct.pack(f"<{form}", value)
    return content[:at] + field + content[at + len(field) :]


@edit("dimensions")
def dimensions(rng: Random, content: bytes) -> bytes:
    return _with(_with(content, 18, "i", rng.choice(_NUMBERS)), 22, "i", rng.choice((20, -20, *_NUMBERS)))


@edit("bits of a pixel")
def bits(rng: Random, content: bytes) -> bytes:
    return _with(content, 28, "H", rng.choice((0, 1, 2, 4, 8, 16, 24, 32, 64, 65_535)))


@edit("compression")
def compression(rng: Random, content: bytes) -> bytes:
    return _with(content, 30, "I", rng.choice((1, 2, 3, 4, 5, 6, 11, 2**32 - 1)))


@edit("compression of 8 bits")
def run_lengths(rng: Random, content: bytes) -> bytes:
    """Codes of runs that go over the image's ends."""
    codes = b"".join(bytes([rng.choice((0, 0, 1, 3, 255)), rng.randrange(256)]) for _ in range(200))
    head = content[:54] + bytes(1024)
    return _with(_with(_with(head, 28, "H", 8), 30, "I", 1), 10, "I", len(head)) + codes


@edit("place of the pixels")
def offset(rng: Random, content: bytes) -> bytes:
    return _with(content, 10, "I", rng.choice((0, 14, 53, 54, 55, len(content), 2**31, 2**32 - 1)))


@edit("size of the header")
def header(rng: Random, content: bytes) -> bytes:
    return _with(content, 14, "I", rng.choice((0, 12, 16, 39, 40, 52, 56, 64, 108, 124, 1_000, 2**32 - 1)))


@edit("colours")
def colours(rng: Random, content: bytes) -> bytes:
    return _with(content, 46, "I", rng.choice((0, 1, 2, 255, 257, 65_536, 2**31, 2**32 - 1)))


@edit("header damaged")
def damaged(rng: Random, content: bytes) -> bytes:
    return content[:2] + flip(rng, content[2:70]) + content[70:]
