"""Checkpoints that are archives, though not such as a run writes."""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

import torch

from tests.fuzz.mutations.registry import mutation, place
from tests.fuzz.mutations.which import checkpoints, replace, steps
from tests.fuzz.scene import Scene

STORED, DEFLATED, BZIP2, LZMA = 0, 8, 12, 14


@dataclass
class Entry:
    """One file of an archive, with all that its two headers say of it."""

    name: str
    data: bytes
    """Content as it lies in the archive."""
    method: int = STORED
    size: int | None = None
    """Size that it claims to have when inflated. None: the true size of a stored one."""
    crc: int | None = None
    flags: int = 0
    compressed: int | None = None


def archive(entries: Iterable[Entry]) -> bytes:
    """A ZIP file, by hand: libraries write none that lie."""
    body, directory, count = bytearray(), bytearray(), 0
    for entry in entries:
        name = entry.name.encode(errors="surrogatepass")
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        size = len(entry.data) if entry.size is None else entry.size
        compressed = len(entry.data) if entry.compressed is None else entry.compressed
        common = struct.pack(
            "<HHHHHIIIHH", 20, entry.flags, entry.method, 0, 33, crc, compressed, min(size, 2**32 - 1), len(name), 0
        )
        directory += b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + name
        body += b"PK\3\4" + common + name + entry.data
        count += 1
    end = struct.pack("<HHHHIIH", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), len(body), 0)
    return bytes(body + directory + b"PK\5\6" + end)


def entries_of(content: bytes) -> list[Entry]:
    """Entries of a whole checkpoint, inflated."""
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        return [Entry(info.filename, opened.read(info)) for info in opened.infolist()]


def zeros(gigabytes: float) -> tuple[bytes, int]:
    """A deflated stream of that many zeros in about a thousandth, and its size."""
    block_size = 1 << 24
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = compressor.compress(bytes(block_size)) + compressor.flush(zlib.Z_FULL_FLUSH)
    count = int(gigabytes * 64)
    return block * count + b"\3\0", block_size * count


def _pick(rng: Random, entries: list[Entry]) -> Entry:
    """The pickle as often as all others."""
    pickle = next(entry for entry in entries if entry.name.endswith("data.pkl"))
    return pickle if rng.random() < 0.5 else entries[place(rng, len(entries))]


def declares_gigabytes(rng: Random, entries: list[Entry]) -> list[Entry]:
    entry = _pick(rng, entries)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    entry.crc, entry.size = zlib.crc32(entry.data), rng.choice((2**31, 2**32 - 2, 2**32 - 1, 3 << 30))
    entry.data, entry.method = compressor.compress(entry.data) + compressor.flush(), DEFLATED
    return entries


def stored_of_gigabytes(rng: Random, entries: list[Entry]) -> list[Entry]:
    entry = _pick(rng, entries)
    entry.size = rng.choice((2**31, 3 << 30))
    entry.compressed = rng.choice((None, entry.size))
    return entries


def inflates_to_gigabytes(rng: Random, entries: list[Entry]) -> list[Entry]:
    entry = _pick(rng, entries)
    entry.data, size = zeros(1.5)
    entry.method, entry.size, entry.crc = DEFLATED, rng.choice((size, size, 100)), 0
    return entries


def many_that_inflate(rng: Random, entries: list[Entry]) -> list[Entry]:
    """Each of little size, all together of gigabytes."""
    data, size = zeros(0.0625)
    prefix = entries[0].name.partition("/")[0]
    return [
        *entries,
        *(Entry(f"{prefix}/data/{1000 + i}", data, DEFLATED, size, zlib.crc32(bytes(size))) for i in range(40)),
    ]


def twice(rng: Random, entries: list[Entry]) -> list[Entry]:
    entry = _pick(rng, entries)
    other = Entry(entry.name, rng.choice((entry.data, b"", rng.randbytes(len(entry.data)))))
    return [other, *entries] if rng.random() < 0.5 else [*entries, other]


def in_bzip2_or_lzma(rng: Random, entries: list[Entry]) -> list[Entry]:
    entry = _pick(rng, entries)
    entry.size, entry.crc = len(entry.data), zlib.crc32(entry.data)
    if rng.random() < 0.5:
        entry.data, entry.method = bz2.compress(entry.data), BZIP2
    else:
        options = [{"id": lzma.FILTER_LZMA1}]
        packed = lzma.compress(entry.data, lzma.FORMAT_RAW, filters=options)
        properties = lzma._encode_filter_properties(options[0])  # type: ignore[attr-defined]
        entry.data = struct.pack("<BBH", 9, 4, len(properties)) + properties + packed
        entry.method = LZMA
    return entries


def of_an_unknown_method(rng: Random, entries: list[Entry]) -> list[Entry]:
    _pick(rng, entries).method = rng.choice((1, 6, 9, 93, 95, 99, 255))
    return entries


def with_odd_flags(rng: Random, entries: list[Entry]) -> list[Entry]:
    """Encrypted, with sizes behind the data, strongly encrypted, masked headers."""
    _pick(rng, entries).flags = rng.choice((1, 8, 0x40, 0x2000, 0x800, 0xFFFF))
    return entries


def thousands(rng: Random, entries: list[Entry]) -> list[Entry]:
    prefix = entries[0].name.partition("/")[0]
    name = rng.choice((f"{prefix}/data/{{}}", f"{prefix}/x{{}}", "{}"))
    return [*entries, *(Entry(name.format(i + 1000), b"") for i in range(30_000))]


def with_odd_names(rng: Random, entries: list[Entry]) -> list[Entry]:
    entry = _pick(rng, entries)
    odd = ("../outside/file.txt", "/etc/passwd", "", "a/" * 200, "x" * 60_000, "data/\0", "\ud800", "archive/data/-1")
    name = rng.choice((*odd, "archive/data/x", "archive/data/0", "archive/data/99999999999999999999"))
    if rng.random() < 0.5:
        entry.name = name
        return entries
    return [*entries, Entry(name, b"x")]


def without_one(rng: Random, entries: list[Entry]) -> list[Entry]:
    entries.remove(_pick(rng, entries))
    return entries


def of_another_size(rng: Random, entries: list[Entry]) -> list[Entry]:
    entry = entries[place(rng, len(entries))]
    entry.data = rng.choice((b"", entry.data[:-1], entry.data + b"\0", entry.data * 2))
    return entries


def odd_version(rng: Random, entries: list[Entry]) -> list[Entry]:
    for entry in entries:
        if entry.name.endswith(rng.choice(("version", "byteorder"))):
            entry.data = rng.choice((b"", b"0", b"99999999999999999999", b"x", b"\xff", b"big", b"-1\n"))
    return entries


def noise_in_one(rng: Random, entries: list[Entry]) -> list[Entry]:
    """The archive is whole, CRCs and all; a tensor or the pickle is not what it was."""
    entry = _pick(rng, entries)
    data = bytearray(entry.data)
    for _ in range(rng.choice((1, 1, 5, 50))):
        if data:
            data[place(rng, len(data))] = rng.randrange(256)
    entry.data = bytes(data)
    return entries


EDITS: tuple[Callable[[Random, list[Entry]], list[Entry]], ...] = (
    declares_gigabytes,
    stored_of_gigabytes,
    inflates_to_gigabytes,
    many_that_inflate,
    twice,
    in_bzip2_or_lzma,
    of_an_unknown_method,
    with_odd_flags,
    thousands,
    with_odd_names,
    without_one,
    of_another_size,
    odd_version,
    noise_in_one,
)


def _of_checkpoints(edit: Callable[[Random, list[Entry]], list[Entry]]) -> None:
    @mutation("archive", edit.__name__)
    def act(rng: Random, scene: Scene) -> str:
        which, paths = checkpoints(rng, scene)
        content = archive(edit(rng, entries_of(steps(scene)[0].read_bytes())))
        for path in paths:
            replace(path, content)
        return f"{edit.__name__} in {which}"


for _edit in EDITS:
    _of_checkpoints(_edit)


@mutation("archive")
def another_kind_of_archive(rng: Random, scene: Scene) -> str:
    which, paths = checkpoints(rng, scene)
    kinds = {
        "a document": lambda: archive([Entry("[Content_Types].xml", b"<x/>"), Entry("word/document.xml", b"<x/>")]),
        "an archive of nothing": lambda: archive([]),
        "an end of an archive alone": lambda: b"PK\5\6" + bytes(18),
        "torch's old format": lambda: _saved(torch.ones(3), old=True),
        "the state in torch's old format": lambda: _saved(_content(scene), old=True),
        "the state without deflation": lambda: _saved(_content(scene)),
        "a tensor": lambda: _saved(torch.ones(3)),
        "a list": lambda: _saved([1, 2]),
        "a state_dict": lambda: _saved({"fc1.weight": torch.ones(3, 3)}),
        "a module as TorchScript": _scripted,
        "a tar file": lambda: b"x".ljust(257, b"\0") + b"ustar\x0000".ljust(1000, b"\0"),
        "a gzip file": lambda: b"\x1f\x8b\x08" + bytes(100),
        "a number, pickled": lambda: b"\x80\x02K\x01.",
    }
    name = rng.choice(list(kinds))
    content = kinds[name]()
    for path in paths:
        replace(path, content)
    return f"{name} for {which}"


def _content(scene: Scene) -> object:
    return torch.load(steps(scene)[0], weights_only=True)


def _saved(content: object, *, old: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


def _scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file.getvalue()
