"""Bytes that are no longer what was written. Without a right checksum."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.fuzz.mutations.registry import mutation, place
from tests.fuzz.mutations.which import checkpoints, replace
from tests.fuzz.scene import Scene

Damage = Callable[[Random, bytes], bytes]


def flip(rng: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 10, 100))):
        if changed:
            changed[place(rng, len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_in_the_last_bytes(rng: Random, content: bytes) -> bytes:
    """Flip bits where an archive has its directory."""
    cut = max(0, len(content) - 2500)
    return content[:cut] + flip(rng, content[cut:])


def cut(rng: Random, content: bytes) -> bytes:
    return content[: place(rng, len(content))]


def cut_in_front(rng: Random, content: bytes) -> bytes:
    return content[place(rng, len(content)) :]


def cut_a_little(rng: Random, content: bytes) -> bytes:
    return content[: -rng.randrange(1, 30)]


def zero_a_part(rng: Random, content: bytes) -> bytes:
    begin, length = place(rng, len(content)), rng.choice((1, 16, 512, 4096))
    return content[:begin] + bytes(len(content[begin : begin + length])) + content[begin + length :]


def all_zeros(rng: Random, content: bytes) -> bytes:
    return bytes(len(content))


def noise(rng: Random, content: bytes) -> bytes:
    return rng.randbytes(rng.choice((1, 100, len(content), 200_000)))


def noise_in_a_part(rng: Random, content: bytes) -> bytes:
    begin, length = place(rng, len(content)), rng.choice((4, 64, 512))
    return content[:begin] + rng.randbytes(length) + content[begin + length :]


def append(rng: Random, content: bytes) -> bytes:
    return content + rng.choice((b"\0", b"\n", rng.randbytes(100), bytes(70_000), content))


def prepend(rng: Random, content: bytes) -> bytes:
    return rng.choice((b"\0", b"#!/bin/sh\n", rng.randbytes(100), bytes(70_000))) + content


def empty(rng: Random, content: bytes) -> bytes:
    return b""


def swap_parts(rng: Random, content: bytes) -> bytes:
    a, b = sorted((place(rng, len(content)), place(rng, len(content))))
    return content[:a] + content[b:] + content[a:b]


def repeat_a_part(rng: Random, content: bytes) -> bytes:
    begin, length = place(rng, len(content)), rng.choice((1, 10, 1000))
    return content[: begin + length] + content[begin:]


DAMAGES: tuple[Damage, ...] = (
    flip,
    flip_in_the_last_bytes,
    cut,
    cut_in_front,
    cut_a_little,
    zero_a_part,
    all_zeros,
    noise,
    noise_in_a_part,
    append,
    prepend,
    empty,
    swap_parts,
    repeat_a_part,
)


def _on_checkpoints(damage: Damage) -> None:
    @mutation("checkpoint", damage.__name__)
    def act(rng: Random, scene: Scene) -> str:
        which, paths = checkpoints(rng, scene)
        for path in paths:
            replace(path, damage(rng, path.read_bytes() if path.exists() else b""))
        return f"{damage.__name__} of {which}"


for _damage in DAMAGES:
    _on_checkpoints(_damage)
