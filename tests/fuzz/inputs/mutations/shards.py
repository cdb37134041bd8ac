"""Shards that are no whole tars of images and labels."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

from tests.fuzz.inputs.mutations.files import THINGS
from tests.fuzz.inputs.mutations.names import STEMS, odd
from tests.fuzz.inputs.mutations.registry import mutation
from tests.fuzz.inputs.mutations.tars import BLOCK, END, Member, members, record, tar
from tests.fuzz.inputs.place import Place, without_indexes
from tests.fuzz.mutations.damage import DAMAGES
from tests.fuzz.mutations.registry import place as index

SIZES: tuple[int | bytes, ...] = (
    0, 1, 511, 513, 10**5, 100 * 10**9, 8**11 - 1, 2**62, 2**63, 2**87, -1, -512, -(2**62),
    b"", b" ", b"abc", b"0x10", b"-1", b"777777777777", b"\x80", b"\xff" * 12, b"1_0",
)  # fmt: skip
LABELS = (
    b"",
    b"-1",
    b"3",
    b"99",
    b"1e3",
    b"0x1",
    b"007",
    b" 1 \n",
    b"\xef\xbb\xbf1",
    b"1\0",
    b"ape",
    b"9" * 18,
    b"9" * 19,
    b"9" * 5_000,
    b"1" + b" " * 10**6,
    "\u0663".encode(),
    b"+1",
    b"1_0",
    b"-0",
    b"nan",
)


def shard(rng: Random, place: Place) -> Path:
    """Its index goes, else it would not be read; most of the time."""
    path = rng.choice(sorted(place.data.glob("*/*.tar")))
    if rng.random() < 0.8:
        without_indexes(place.data)
    return path


Change = Callable[[Random, list[Member]], list[Member]]


def _on_members(name: str, change: Change) -> None:
    @mutation("shard", name)
    def act(rng: Random, place: Place) -> str:
        path = shard(rng, place)
        path.write_bytes(tar(change(rng, members(path.read_bytes()))))
        return f"{name} in {path.relative_to(place.data)}"


def on_members(change: Change) -> Change:
    _on_members(change.__name__, change)
    return change


@mutation("shard")
def bytes_damaged(rng: Random, place: Place) -> str:
    path, damage = shard(rng, place), rng.choice(DAMAGES)
    path.write_bytes(damage(rng, path.read_bytes()))
    return f"{damage.__name__} of {path.relative_to(place.data)}"


@mutation("shard")
def another_end(rng: Random, place: Place) -> str:
    path = shard(rng, place)
    parts = members(path.read_bytes())
    content = tar(parts, b"")
    how = rng.choice(("none", "one block", "many", "junk", "another tar", "cut", "compressed"))
    content = {
        "none": content,
        "one block": content + bytes(BLOCK),
        "many": content + bytes(100 * BLOCK),
        "junk": content + END + rng.randbytes(3 * BLOCK),
        "another tar": content + END + content + END,
        "cut": content[: index(rng, len(content))],
        "compressed": gzip.compress(content + END),
    }[how]
    path.write_bytes(content)
    return f"{path.relative_to(place.data)} ends in {how}"


@mutation("shard")
def no_regular_file(rng: Random, place: Place) -> str:
    path, name = shard(rng, place), rng.choice(list(THINGS))
    path.unlink()
    THINGS[name](rng, path)
    return f"{path.relative_to(place.data)} is {name}"


@mutation("shard")
def sparse_tail(rng: Random, place: Place) -> str:
    """Grow a shard to the size of a disk, without content."""
    path = shard(rng, place)
    if rng.random() < 0.5:
        path.write_bytes(tar([*members(path.read_bytes()), Member(b"big.txt", size=100 * 10**9)], b""))
    os.truncate(path, 120 * 10**9)
    return f"{path.relative_to(place.data)} has 120 GB"


@on_members
def sizes(rng: Random, parts: list[Member]) -> list[Member]:
    number = index(rng, len(parts))
    parts[number] = replace(parts[number], size=rng.choice(SIZES))
    return parts


@on_members
def kinds(rng: Random, parts: list[Member]) -> list[Member]:
    for _ in range(rng.choice((1, 1, 3))):
        number = index(rng, len(parts))
        kind = rng.choice(
            (b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"K", b"L", b"x", b"g", b"X", b"Z", b"\xff")
        )
        parts[number] = replace(parts[number], kind=kind, link=rng.choice((b"", b"/etc/passwd", parts[0].name)))
    return parts


@on_members
def odd_fields(rng: Random, parts: list[Member]) -> list[Member]:
    number = index(rng, len(parts))
    odd_value = rng.choice((b"", b"\xff" * 12, b"\x80" + bytes(11), b"zzzzzzz", b"99999999"))
    name = rng.choice(("mode", "magic", "checksum", "uid", "mtime", "prefix"))
    parts[number] = replace(parts[number], **{name: odd_value})
    return parts


@on_members
def long_names(rng: Random, parts: list[Member]) -> list[Member]:
    """Extended headers that are long, many in a row, or say more than there is."""
    kind = rng.choice((b"L", b"K", b"x", b"g"))
    body = rng.choice((b"x" * 3_000 + b"\0", bytes(10), b"", b"y" * 5_000_000, record(b"path", b"z" * 100_000)))
    size = rng.choice((None, None, 100 * 10**9, 2**62, -1, 8**11 - 1))
    at, most = index(rng, len(parts) + 1), 50_000_000 // (len(body) + BLOCK)
    chain = [Member(b"././@LongLink", body, kind, size)] * min(most, rng.choice((1, 1, 2, 2_000, 20_000)))
    return [*parts[:at], *chain, *parts[at:]]


@on_members
def pax_headers(rng: Random, parts: list[Member]) -> list[Member]:
    number = index(rng, len(parts))
    records = (
        record(b"size", rng.choice((b"0", b"-5", b"99999999999999", b"1e9", b"x", b"9" * 5_000))),
        record(b"path", rng.choice(STEMS)),
        record(b"path", b"\xff\xfe.png"),
        record(b"hdrcharset", rng.choice((b"BINARY", b"x"))),
        record(b"mtime", rng.choice((b"nan", b"1e999", b"x"))),
        record(b"GNU.sparse.major", b"1")
        + record(b"GNU.sparse.minor", b"0")
        + record(b"GNU.sparse.realsize", b"9" * 15),
        record(b"GNU.sparse.map", rng.choice((b"0,1,2", b"x", b"0,99999999999"))) + record(b"GNU.sparse.size", b"9999"),
        record(b"GNU.sparse.numblocks", b"9" * 9),
        record(b"SCHILY.xattr.user.x", bytes(100_000)),
        record(b"comment", b"x", rng.choice((0, 1, 5, 10**9))),
        b"no record",
        b"5 a=\n" * rng.choice((1, 100_000)),
        b"9" * 5_000 + b" a=b\n",
    )
    content = b"".join(rng.sample(records, rng.choice((1, 1, 2))))
    return [*parts[:number], Member(b"PaxHeader", content, rng.choice((b"x", b"x", b"g"))), *parts[number:]]


@on_members
def names(rng: Random, parts: list[Member]) -> list[Member]:
    number = index(rng, len(parts))
    old = parts[number].name
    suffix = "." + old.decode().rpartition(".")[2]
    name = rng.choice(
        (
            odd(rng, suffix),
            b"../" + old,
            b"/" + old,
            b"",
            b"a/b/" + old,
            b".hidden" + suffix.encode(),
            old.upper(),
            b"./" + old,
            b"noext",
            b"a.b" + suffix.encode(),
            old.rpartition(b".")[0],
        )
    )
    parts[number] = replace(parts[number], name=name)
    if rng.random() < 0.5:  # With its label.
        other = number + 1 if number % 2 == 0 else number - 1
        end = b"." + parts[other].name.rpartition(b".")[2]
        parts[other] = replace(parts[other], name=name.rpartition(b".")[0] + end)
    return parts


@on_members
def pairs_broken(rng: Random, parts: list[Member]) -> list[Member]:
    how = rng.choice(("gone", "twice", "moved", "shuffled", "none", "dotted", "others"))
    number = index(rng, len(parts))
    if how == "gone":
        del parts[number]
    elif how in ("twice", "moved"):
        chosen = parts[number] if how == "twice" else parts.pop(number)
        parts.insert(index(rng, len(parts) + 1), chosen)
    elif how == "shuffled":
        rng.shuffle(parts)
    elif how == "dotted":
        parts = [replace(part, name=b"img." + part.name) for part in parts]
    elif how == "others":
        parts += [
            Member(parts[number].name.partition(b".")[0] + end, b"x")
            for end in (b".json", b".txt", b".seg.png", b".cls2")
        ]
    return [] if how == "none" else parts


@on_members
def label_texts(rng: Random, parts: list[Member]) -> list[Member]:
    labels = [number for number, part in enumerate(parts) if part.name.endswith(b".cls")]
    for number in rng.sample(labels, rng.choice((1, 1, len(labels)))):
        parts[number] = replace(parts[number], content=rng.choice(LABELS))
    return parts


@on_members
def many_members(rng: Random, parts: list[Member]) -> list[Member]:
    count = rng.choice((1_000, 20_000))
    return [*parts, *(Member(b"%d.%s" % (number, rng.choice((b"txt", b"cls", b"jpg")))) for number in range(count))]
