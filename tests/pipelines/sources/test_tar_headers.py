"""Headers of tars: what Python's reader finds in those of honest writers, and a bound on what others can cost."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sources.shard_samples import samples_in
from pipelines.sources.tar_headers import BLOCK, Member, UnusableError, members

NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=20)
PATHS = st.lists(NAMES | st.just("long" * 40), min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE,
                         tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])  # fmt: skip


@given(
    st.lists(st.tuples(PATHS, KINDS, st.binary(max_size=1100)), min_size=1, max_size=5),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.booleans(),
)
def test_members_are_those_of_pythons_reader(made: list[tuple[str, bytes, bytes]], form: int, described: bool) -> None:
    buffer = io.BytesIO()
    comment = {"comment": "x" * 600} if described else {}
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers=comment) as tar:
        for name, kind, content in made:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mtime = kind, "other" * 50, 1.5
            if kind in tarfile.REGULAR_TYPES:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer, encoding="utf-8") as tar:
        expected = [(m.name.encode(), m.offset_data, m.size, m.isreg(), m.isdir()) for m in tar]
    assert [(m.name, m.offset, m.size, m.is_regular, m.is_folder) for m in read(buffer.getvalue())] == expected


def read(content: bytes, inside: Member | None = None) -> list[Member]:
    descriptor = os.memfd_create("tar")
    with os.fdopen(descriptor, "w+b") as file:
        file.write(content)
        file.seek(0)
        return list(members(file, inside))


def header(name: bytes, size: int | bytes, kind: bytes = b"0", **more: bytes) -> bytes:
    digits = b"%011o\0" % size if isinstance(size, int) else size
    block = bytearray(BLOCK)
    magic, prefix = more.get("magic", b"ustar\x0000"), more.get("prefix", b"")
    for at, field in ((0, name), (124, digits), (156, kind), (257, magic), (345, prefix)):
        block[at : at + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def huge(size: int) -> bytes:
    return b"\x80" + size.to_bytes(11, "big")


END = bytes(2 * BLOCK)


def inner_and_outer() -> tuple[bytes, bytes]:
    """A tar of two files, and a tar that has it between two others."""
    inner = header(b"a", 600) + bytes(1024) + header(b"b", 3) + bytes(512) + END
    others = [header(b"first", 5) + bytes(512), header(b"last", 5) + b"\xff" * 512]
    return inner, others[0] + header(b"inner.tar", len(inner)) + inner + others[1] + END


def test_a_tar_in_a_tar() -> None:
    inner, outer = inner_and_outer()
    there = read(outer)[1]
    assert there.name == b"inner.tar"
    alone = [(member.name, member.offset + there.offset, member.size) for member in read(inner)]
    assert [(member.name, member.offset, member.size) for member in read(outer, inside=there)] == alone


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (100, "is no tar, or damaged after byte 0 (no whole header)"),
        (1000, "is truncated: it ends at byte 1000, within a"),
        (1536, "is truncated: it ends at byte 1536, without the mark of a tar's end"),
        (1636, "is truncated: it ends at byte 1636, without the mark of a tar's end"),
        (2050, "is truncated: it ends at byte 2050, within b"),
    ],
)
def test_a_tar_in_a_tar_is_not_read_beyond_its_end(size: int, reason: str) -> None:
    """Bytes that follow belong to other members, and would be taken for its own."""
    _, outer = inner_and_outer()
    there = read(outer)[1]
    with pytest.raises(UnusableError, match=re.escape(reason)):
        read(outer, Member(there.name, there.offset, size, there.kind))


def filled(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    content = b"".join(records)
    return header(b"pax", len(content), kind) + filled(content)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" %s=%s\n" % (key, value)
    return b"%d%s" % (next(n for n in range(5, 9999) if n == len(str(n)) + len(rest)), rest)


def test_old_and_posix_headers() -> None:
    posix = header(b"b.jpg", 3, prefix=b"folder") + filled(b"abc")
    assert [(m.name, m.offset, m.size) for m in read(posix + END)] == [(b"folder/b.jpg", 512, 3)]
    gnu = header(b"b.jpg", 3, magic=b"ustar  \0", prefix=b"15000000000") + filled(b"abc")
    assert [m.name for m in read(gnu + END)] == [b"b.jpg"], "times stand where POSIX has the prefix"
    old = header(b"folder/", 0, b"\0", magic=b"") + header(b"c", 1, b"\0", magic=b"") + filled(b"x")
    assert [(m.name, m.is_folder) for m in read(old + END)] == [(b"folder", True), (b"c", False)]


def test_sizes_over_8_gib_and_in_pax_records() -> None:
    assert read(header(b"a", huge(3)) + filled(b"abc") + END)[0].size == 3
    found = read(pax(record(b"size", b"3"), record(b"path", "é".encode())) + header(b"a", 0) + filled(b"abc") + END)
    assert [(m.name, m.size) for m in found] == [("é".encode(), 3)]


def test_sparse_members_are_told(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
        os.truncate(tmp_path / name, 50 << 20)
    for form in ("gnu", "posix"):
        tar = tmp_path / f"{form}.tar"
        command = ["tar", "--sparse", f"--format={form}", "-cf", tar, "-C", tmp_path, "a.jpg", "b.jpg"]
        subprocess.run(command, check=True)
        with tar.open("rb") as file:
            assert [(m.name, m.sparse) for m in members(file)] == [(b"a.jpg", True), (b"b.jpg", True)]


LONG_CHAIN = b"".join(header(b"@", 5, b"L") + filled(b"name\0") for _ in range(100_000))
BOMBS: dict[str, tuple[bytes, str]] = {
    "a name of 100 GB": (header(b"@", huge(100 << 30), b"L"), "a header of 107,374,182,400 bytes, where a name"),
    "a link of 100 GB": (header(b"@", huge(100 << 30), b"K"), "a header of 107,374,182,400 bytes"),
    "records of 100 GB": (header(b"@", huge(100 << 30), b"x"), "a header of 107,374,182,400 bytes"),
    "global records of 100 GB": (header(b"@", huge(100 << 30), b"g"), "a header of 107,374,182,400 bytes"),
    "a name below 0": (header(b"@", b"\xff" * 12, b"L"), "a header of -1 bytes"),
    "a chain of names": (LONG_CHAIN, "more than 8 headers for one member"),
    "a chain of records": (pax(record(b"path", b"a")) * 100_000, "more than 8 headers for one member"),
    "names for nothing": (header(b"@", 5, b"L") + filled(b"name\0") + END, "a header without a member"),
    "a record longer than the header": (pax(b"999 path=a\n"), "pax records that cannot be read"),
    "a record of no length": (pax(record(b"path", b"a"), b" path=b\n"), "pax records that cannot be read"),
    "a record of length 0": (pax(record(b"path", b"a"), b"0 path=b\n"), "pax records that cannot be read"),
    "a record that is no record": (pax(b"7 path\n"), "pax records that cannot be read"),
    "digits without end": (pax(b"1" * 500_000), "pax records that cannot be read"),
    "a size of many digits": (pax(record(b"size", b"9" * 5000)) + header(b"a", 0), "a size that is no number"),
    "a size below 0": (pax(record(b"size", b"-512")) + header(b"a", 0), "a size that is no number"),
    "a size that is no number": (header(b"a", b"12345678x9a\0"), "a size that is no number"),
    "one name for all": (pax(record(b"path", b"a"), kind=b"g") + header(b"b", 0), "in a global header; pack it anew"),
    "a member of 100 GB": (header(b"a.jpg", huge(100 << 30)) + END, "is truncated: it ends at byte"),
    "a sparse map without end": (header(b"a", 0, b"S", prefix=b"\1" * 155) + b"\1" * 10_000_000, "is truncated"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_headers_are_refused(name: str) -> None:
    content, message = BOMBS[name]
    with pytest.raises(UnusableError) as caught:
        read(content)
    assert message in str(caught.value)


def test_no_bomb_takes_memory(tmp_path: Path) -> None:
    """All of them in a process that may not take 300 MB more than what it takes to import this."""
    for number, (content, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.tar").write_bytes(content)
    with (tmp_path / "hollow.tar").open("wb") as file:
        file.write(header(b"a.jpg", huge(99 << 30)))
        file.truncate(100 << 30)
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom pipelines.sources.shard_index import read_tar\n"
        "from pipelines.common.errors import UserError\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + (300 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used, used))\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.tar')):\n"
        "    try: read_tar(path, 'here')\n"
        "    except UserError as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("here: ") == ended.stdout.count("\n") == len(BOMBS) + 1
    assert "has an image of sample a but no label (a.cls)" in ended.stdout


@given(st.data())
def test_whatever_the_bytes_are_they_are_read_or_refused(data: st.DataObject) -> None:
    """Changed bytes with checksums made right, so that they are looked at."""
    whole = bytearray(
        pax(record(b"path", b"a.jpg")) + header(b"a.jpg", 5) + filled(b"image")
        + header(b"@", 6, b"L") + filled(b"a.cls\0") + header(b"x", 1) + filled(b"7") + END
    )  # fmt: skip
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for at in (0, 1024, 2048, 3072):
        if any(whole[at : at + BLOCK]):
            whole[at + 148 : at + 156] = b" " * 8
            whole[at + 148 : at + 156] = b"%06o\0 " % sum(whole[at : at + BLOCK])
    with os.fdopen(os.memfd_create("tar"), "w+b") as file:
        file.write(whole)
        file.seek(0)
        try:
            found = samples_in(file)
        except UnusableError:
            return
        assert all(0 < s.offset <= len(whole) - s.size for s in found)
