"""Archives of data sets: damaged at each level, or with members that no official archive has."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

from tests.fuzz.inputs.archive_files import CIFAR10, NAMES
from tests.fuzz.inputs.mutations import shards
from tests.fuzz.inputs.mutations.files import THINGS
from tests.fuzz.inputs.mutations.names import odd
from tests.fuzz.inputs.mutations.registry import mutation
from tests.fuzz.inputs.mutations.tars import END, Member, members, tar
from tests.fuzz.inputs.place import Place
from tests.fuzz.mutations.damage import DAMAGES
from tests.fuzz.mutations.registry import place as index
from tests.pipelines.tools.prepare import archives

GZIP = "gzip"
ARRAYS = NAMES["mnist"][0]
LEVELS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "training images": ("imagenet", archives.TRAIN, ()),
    "a class": ("imagenet", archives.TRAIN, (".tar",)),
    "an image of a class": ("imagenet", archives.TRAIN, (".tar", ".JPEG")),
    "validation images": ("imagenet", archives.VAL, ()),
    "a validation image": ("imagenet", archives.VAL, (".JPEG",)),
    "the devkit": ("imagenet", archives.DEVKIT, ()),
    "the unpacked devkit": ("imagenet", archives.DEVKIT, (GZIP,)),
    "the synsets": ("imagenet", archives.DEVKIT, (GZIP, archives.META)),
    "the labels": ("imagenet", archives.DEVKIT, (GZIP, archives.TRUTH)),
    "CIFAR-10": ("cifar10", CIFAR10, ()),
    "the unpacked CIFAR-10": ("cifar10", CIFAR10, (GZIP,)),
    "a batch": ("cifar10", CIFAR10, (GZIP, "_1")),
    "MNIST": ("mnist", ARRAYS, ()),
    "the unpacked MNIST": ("mnist", ARRAYS, (GZIP,)),
}
"""Data set, archive and, from the outside in, what is unpacked: by gzip, or a member whose name ends so."""
TARS = ("training images", "a class", "a class", "validation images", "the unpacked devkit", "the unpacked CIFAR-10")
PACKED = ("the devkit", "CIFAR-10", "MNIST")
Damage = Callable[[bytes], bytes]


def _within(rng: Random, content: bytes, layers: tuple[str, ...], damage: Damage) -> bytes:
    if not layers:
        return damage(content)
    if layers[0] == GZIP:
        return gzip.compress(_within(rng, gzip.decompress(content), layers[1:], damage), 1)
    parts = members(content)
    number = rng.choice([at for at, part in enumerate(parts) if part.name.endswith(layers[0].encode())])
    parts[number] = replace(parts[number], content=_within(rng, parts[number].content, layers[1:], damage))
    return tar(parts)


def _change(rng: Random, place: Place, level: str, damage: Damage) -> None:
    place.data_set, archive, layers = LEVELS[level]
    path = place.data / archive
    path.write_bytes(_within(rng, path.read_bytes(), layers, damage))


def _damaged(level: str) -> None:
    @mutation("archive", f"{level} damaged")
    def act(rng: Random, place: Place) -> str:
        damage = rng.choice(DAMAGES)
        _change(rng, place, level, lambda content: damage(rng, content))
        return f"{damage.__name__} of {level}"


for _level in LEVELS:
    _damaged(_level)


def _on_members(change: shards.Change) -> shards.Change:
    @mutation("archive", f"members: {change.__name__}")
    def act(rng: Random, place: Place) -> str:
        level = rng.choice(TARS)
        _change(rng, place, level, lambda content: tar(change(rng, members(content))))
        return f"{change.__name__} in {level}"

    return change


for _change_of in (
    shards.sizes,
    shards.kinds,
    shards.odd_fields,
    shards.long_names,
    shards.pax_headers,
    shards.many_members,
):
    _on_members(_change_of)


@_on_members
def other_names(rng: Random, parts: list[Member]) -> list[Member]:
    number, other = index(rng, len(parts)), index(rng, len(parts))
    old = parts[number].name
    names = (
        b"../" + old, b"/" + old, b"/tmp/" + old, b"a/" + old, b"a/../" + old, b"./" + old, b"././" + old, old + b"/",
        old.upper(), old + b"\0x", old + b"\n", old.replace(b"0", b"\xd9\xa0"), b"", b".", b"..", b"~", b"-rf",
        parts[other].name, old.replace(b"1", b"2"), odd(rng), odd(rng, os.path.splitext(os.fsdecode(old))[1]),
    )  # fmt: skip
    parts[number] = replace(parts[number], name=rng.choice(names))
    return parts


@_on_members
def gone_or_more(rng: Random, parts: list[Member]) -> list[Member]:
    how = rng.choice(("gone", "twice", "moved", "shuffled", "none", "swapped", "folder"))
    number = index(rng, len(parts))
    if how == "gone":
        del parts[number]
    elif how in ("twice", "moved"):
        chosen = parts[number] if how == "twice" else parts.pop(number)
        parts.insert(index(rng, len(parts) + 1), chosen)
    elif how == "shuffled":
        rng.shuffle(parts)
    elif how == "swapped":
        parts[0], parts[-1] = (
            replace(parts[0], content=parts[-1].content),
            replace(parts[-1], content=parts[0].content),
        )
    elif how == "folder":
        parts.insert(0, Member(rng.choice((b".", b"./", b"train/", b"..", b"/")), kind=b"5"))
    return [] if how == "none" else parts


@_on_members
def links(rng: Random, parts: list[Member]) -> list[Member]:
    """Links in front of the files whose names they have, or in their place."""
    number = index(rng, len(parts))
    target = rng.choice((b"/etc/passwd", b"../../../outside/file.txt", b".", parts[0].name))
    link = replace(parts[number], content=b"", kind=rng.choice((b"1", b"2")), link=target)
    rest = parts[number:] if rng.random() < 0.5 else parts[number + 1 :]
    return [*parts[:number], link, *rest]


@mutation("archive")
def another_end(rng: Random, place: Place) -> str:
    level = rng.choice(TARS)
    tails = (b"", bytes(512), bytes(51_200), END + rng.randbytes(1_536), END + END + b"x", b"x" * 512, rng.randbytes(7))
    tail = rng.choice(tails)
    _change(rng, place, level, lambda content: tar(members(content), tail))
    return f"{level} ends in {len(tail)} bytes"


@mutation("archive")
def packed_otherwise(rng: Random, place: Place) -> str:
    """Gzip files of several members, with other headers, or that stand for very much."""
    level = rng.choice(PACKED)
    how = rng.choice(("members", "junk", "zeros", "bomb", "twice", "plain", "many members", "name"))

    def damage(content: bytes) -> bytes:
        plain = gzip.decompress(content)
        half = len(plain) // 2
        if how == "members":
            return gzip.compress(plain[:half]) + gzip.compress(plain[half:])
        if how == "many members":
            return gzip.compress(b"") * 100_000 + content
        if how == "bomb":
            return gzip.compress(plain + bytes(700 << 20), 1)
        if how == "name":
            return content[:3] + b"\x08" + content[4:10] + b"x" * 1_000_000 + b"\0" + content[10:]
        return {"junk": content + b"junk", "zeros": content + bytes(5_000), "twice": content * 2, "plain": plain}[how]

    _change(rng, place, level, damage)
    return f"{level}: {how}"


@mutation("archive")
def other_synsets(rng: Random, place: Place) -> str:
    """Another meta.mat: numbers, WNIDs and counts that are no such."""
    rows = [(number, wnid, archives.EACH) for number, wnid in enumerate(archives.WNIDS, start=1)]
    number = index(rng, len(rows))
    odd_rows = (
        (0, rows[number][1], 4), (-1, rows[number][1], 4), (2**40, rows[number][1], 4), (1, "n04000004", 4),
        (4, "../../../x", 4), (4, "n0400000\u0664", 4), (4, "n04000004\n", 4), (4, "", 4), (4, "x" * 100_000, 4),
        (5, rows[number][1], -1), (3, "n04000004", 2**60),
    )  # fmt: skip
    rows[number : number + rng.choice((0, 1))] = [rng.choice(odd_rows)]
    _change(rng, place, "the synsets", lambda _: archives.meta(rows))
    return f"synsets {str(rows)[:200]}"


@mutation("archive")
def other_labels(rng: Random, place: Place) -> str:
    lines = [b"%d" % label for label in archives.LABELS]
    odd_lines = (b"0", b"4", b"-1", b"1e0", b"01", b"1.0", b"9999", b"9" * 5_000, "\u0661".encode(), b"\0", b"x", b"")
    lines[index(rng, len(lines))] = rng.choice(odd_lines)
    lines = rng.choice((lines, lines * 2, lines[:-1], [], lines * 20_000))
    _change(rng, place, "the labels", lambda _: rng.choice((b"\n", b"\r\n", b" ", b"\x0c")).join(lines))
    return f"labels {lines[:8]!r:.200}"


@mutation("archive")
def no_regular_file(rng: Random, place: Place) -> str:
    path, name = _any(rng, place), rng.choice(list(THINGS))
    path.unlink()
    THINGS[name](rng, path)
    return f"{path.name} is {name}"


@mutation("archive")
def absent(rng: Random, place: Place) -> str:
    path = _any(rng, place)
    path.unlink()
    return f"{path.name} is absent"


@mutation("archive")
def sparse_tail(rng: Random, place: Place) -> str:
    """Grow an archive to the size of a disk, without content."""
    path = _any(rng, place)
    if rng.random() < 0.5 and path.suffix == ".tar":
        path.write_bytes(tar([*members(path.read_bytes()), Member(b"n09999999.tar", size=100 * 10**9)], b""))
    os.truncate(path, 120 * 10**9)
    return f"{path.name} has 120 GB"


@mutation("archive")
def a_list_of_classes(rng: Random, place: Place) -> str:
    place.data_set = "imagenet"
    wnids = "".join(f"{wnid}\n" for wnid in archives.WNIDS).encode()
    content = rng.choice(
        (wnids, wnids[:10], wnids * 2, b"", b"#\n", b"n09999999\n", b"../x\n", b"\xff\xfe", b"n01000001 \x1b[31m\n",
         b"\0", wnids.replace(b"\n", b"\r\n"), b" \t\n" + wnids, b"n01000001\x0bx", b"x" * 10**6, wnids * 100_000)
    )  # fmt: skip
    (place.home / "classes.txt").write_bytes(content)
    return f"classes.txt is {content[:60]!r}"


def _any(rng: Random, place: Place) -> Path:
    place.data_set = rng.choice(("imagenet", "imagenet", "cifar10", "mnist"))
    return place.data / rng.choice(NAMES[place.data_set])
