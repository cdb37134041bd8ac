"""Indexes beside shards: damaged, of another shard, or made up with a right digest."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

from pipelines.sources.base import digest
from pipelines.sources.shard_index import INDEX_KIND, INDEX_SUFFIX
from tests.fuzz.inputs.mutations.files import THINGS
from tests.fuzz.inputs.mutations.names import STEMS
from tests.fuzz.inputs.mutations.registry import mutation
from tests.fuzz.inputs.place import Place
from tests.fuzz.mutations.damage import DAMAGES, Damage
from tests.fuzz.mutations.registry import place as at

NUMBERS = (-(2**63), -512, -1, 0, 1, 2, 3, 511, 512, 1_024, 10**6, 2**40, 2**62, 2**63 - 1)
_HEAD = 4
"""Numbers of eight bytes in front: samples, bytes in their names, size and time of the shard."""


def chosen(rng: Random, place: Place) -> Path:
    return rng.choice(sorted(place.data.rglob(f"*{INDEX_SUFFIX}")))


def parts(stored: bytes) -> tuple[list[int], bytes]:
    """The numbers of an index, and the names behind them: lengths, offsets, sizes and labels of all samples."""
    content = stored[len(INDEX_KIND) : -16]
    (samples,) = struct.unpack_from("<q", content)
    count = _HEAD + 4 * samples
    return list(struct.unpack_from(f"<{count}q", content)), content[8 * count :]


def signed(numbers: list[int], names: bytes) -> bytes:
    return _signed(INDEX_KIND + struct.pack(f"<{len(numbers)}q", *numbers) + names)


def _signed(content: bytes) -> bytes:
    return content + digest(content).encode()


@mutation("index")
def bytes_damaged(rng: Random, place: Place) -> str:
    path, damage = chosen(rng, place), rng.choice(DAMAGES)
    path.write_bytes(damage(rng, path.read_bytes()))
    return f"{damage.__name__} of {path.name}"


def _and_signed(damage: Damage) -> None:
    @mutation("index", f"signed: {damage.__name__}")
    def act(rng: Random, place: Place) -> str:
        """Behind what says that it is an index, most of the time."""
        path, head = chosen(rng, place), rng.choice((0, len(INDEX_KIND), len(INDEX_KIND)))
        content = path.read_bytes()[:-16]
        path.write_bytes(_signed(content[:head] + damage(rng, content[head:])))
        return f"{damage.__name__} of {path.parent.name}/{path.name}"


for _damage in DAMAGES:
    _and_signed(_damage)


@mutation("index")
def no_regular_file(rng: Random, place: Place) -> str:
    path, name = chosen(rng, place), rng.choice(list(THINGS))
    path.unlink()
    THINGS[name](rng, path)
    return f"{path.name} is {name}"


@mutation("index")
def of_another_shard(rng: Random, place: Place) -> str:
    paths = sorted(place.data.rglob(f"*{INDEX_SUFFIX}"))
    one, other = rng.sample(paths, 2)
    content = other.read_bytes()
    if rng.random() < 0.7:  # As if it were of this one.
        numbers, names = parts(content)
        content = signed([*numbers[:2], *parts(one.read_bytes())[0][2:_HEAD], *numbers[_HEAD:]], names)
    one.write_bytes(content)
    return f"{one.parent.name}/{one.name} is that of {other.parent.name}/{other.name}"


@mutation("index")
def of_another_time(rng: Random, place: Place) -> str:
    path = chosen(rng, place)
    os.utime(path.with_name(path.name.removesuffix(INDEX_SUFFIX)), (1, 1))
    return f"the shard of {path.name} has changed"


Numbers = list[int]
Change = Callable[[Random, Numbers, bytes], tuple[Numbers, bytes]]


def _one(rng: Random, numbers: Numbers, names: bytes) -> tuple[Numbers, bytes]:
    numbers[_HEAD + at(rng, len(numbers) - _HEAD)] = rng.choice(NUMBERS)
    return numbers, names


def _head(rng: Random, numbers: Numbers, names: bytes) -> tuple[Numbers, bytes]:
    numbers[at(rng, _HEAD)] = rng.choice(NUMBERS)
    return numbers, names


def _none(rng: Random, numbers: Numbers, names: bytes) -> tuple[Numbers, bytes]:
    return [0, 0, *numbers[2:_HEAD]], b""


def _swapped(rng: Random, numbers: Numbers, names: bytes) -> tuple[Numbers, bytes]:
    """Within one column, so that a sample has the place, the size or the label of another."""
    samples = numbers[0]
    column = _HEAD + rng.randrange(4) * samples
    values = numbers[column : column + samples]
    rng.shuffle(values)
    return [*numbers[:column], *values, *numbers[column + samples :]], names


def _named(rng: Random, numbers: Numbers, names: bytes) -> tuple[Numbers, bytes]:
    """The first sample under an odd name."""
    name, length = rng.choice(STEMS), numbers[_HEAD]
    rest = names[length:]
    return [numbers[0], len(name) + len(rest), *numbers[2:_HEAD], len(name), *numbers[_HEAD + 1 :]], name + rest


def _many(rng: Random, numbers: Numbers, names: bytes) -> tuple[Numbers, bytes]:
    """The first sample, many times."""
    count, length = rng.choice((100, 2_000)), numbers[_HEAD]
    columns = [numbers[_HEAD + number * numbers[0]] for number in range(4)]
    table = [value for value in columns for _ in range(count)]
    return [count, count * length, *numbers[2:_HEAD], *table], names[:length] * count


CHANGES: dict[str, Change] = {
    "a number": _one,
    "a number of the head": _head,
    "no samples": _none,
    "values swapped": _swapped,
    "an odd name": _named,
    "many samples": _many,
}


def _made_up(name: str, change: Change) -> None:
    @mutation("index", f"made up: {name}")
    def act(rng: Random, place: Place) -> str:
        path = chosen(rng, place)
        path.write_bytes(signed(*change(rng, *parts(path.read_bytes()))))
        return f"{name} in {path.parent.name}/{path.name}"


for _name, _change in CHANGES.items():
    _made_up(_name, _change)
