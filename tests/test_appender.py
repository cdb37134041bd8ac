"""Appending to files on storage that is full, gone, or holds something else."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynsparse.appender import Appender


class Disk:
    """Takes so many bytes more, of any file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 1 << 30
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, descriptor: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self._write(descriptor, bytes(data)[: self.room])
        self.room -= taken
        return taken


def written(appender: Appender) -> bool:
    try:
        appender.write()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_halved_or_doubled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """However often a disk is full, after however few bytes."""
    chance, disk, path = random.Random(seed), Disk(monkeypatch), tmp_path / "a.jsonl"
    appender, expected = Appender(path), b""
    for number in range(200):
        record = f"{number} {'x' * chance.randrange(30)}\n".encode()
        expected += record
        appender.add(record)
        disk.room = chance.choice([0, 1, 7, 40, 400])
        assert written(appender) != appender.pending
        assert expected.startswith(path.read_bytes())
    disk.room = 1 << 30
    appender.write()
    assert path.read_bytes() == expected
    assert not appender.pending


@pytest.mark.parametrize("what", ["removed", "cut", "other"])
def test_a_record_is_whole_in_a_file_that_has_lost_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The beginning is lost, as when a server loses what it had taken, or somebody removes the folder."""
    disk, path = Disk(monkeypatch), tmp_path / "a.jsonl"
    appender = Appender(path)
    appender.add(b"first\n")
    appender.write()
    appender.add(b"second\n")
    disk.room = 3
    assert not written(appender)
    assert path.read_bytes() == b"first\nsec"
    disk.room = 1 << 30
    if what == "removed":
        path.unlink()
    else:
        path.write_bytes({"cut": b"first\ns", "other": b"by others\n"}[what])
    appender.write()
    assert (
        path.read_bytes()
        == {
            "removed": b"second\n",
            "cut": b"first\ns\nsecond\n",
            "other": b"by others\nsecond\n",
        }[what]
    )


def test_a_header_begins_each_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, path = Disk(monkeypatch), tmp_path / "events"
    appender = Appender(path, lines=False, header=b"HEAD")
    for room, record in ((2, b"one"), (3, b"two"), (1 << 30, b"three")):
        disk.room = room
        appender.add(record)
        written(appender)
    assert path.read_bytes() == b"HEADonetwothree"
    path.unlink()
    appender.add(b"four")
    appender.write()
    assert path.read_bytes() == b"HEADfour"


def test_what_memory_does_not_hold_is_told(tmp_path: Path) -> None:
    appender = Appender(tmp_path / "no" / "a", most=10)
    for record in (b"1234\n", b"5678\n", b"9\n"):
        appender.add(record)
    assert not written(appender)
    (tmp_path / "no").mkdir()
    with pytest.raises(OSError, match="lost 1 records"):
        appender.write()
    assert appender.pending
    assert (tmp_path / "no" / "a").read_bytes() == b"1234\n5678\n"


THINGS: dict[str, Callable[[Path, Path], Any]] = {
    "folder": lambda path, target: path.mkdir(),
    "full folder": lambda path, target: (path / "a").mkdir(parents=True),
    "pipe": lambda path, target: os.mkfifo(path),
    "link": lambda path, target: path.symlink_to(target),
    "broken link": lambda path, target: path.symlink_to(target.with_name("none")),
    "link in a circle": lambda path, target: path.symlink_to(path),
    "link to a device": lambda path, target: path.symlink_to("/dev/full"),
}


@pytest.mark.parametrize("thing", THINGS)
def test_what_is_no_file_is_moved_aside(tmp_path: Path, thing: str, caplog: pytest.LogCaptureFixture) -> None:
    """Twice: nothing that was moved aside is replaced."""
    path, target = tmp_path / "a.jsonl", tmp_path / "target"
    target.write_text("not ours")
    appender = Appender(path)
    for number in (1, 2):
        THINGS[thing](path, target)
        appender.add(b"line\n")
        appender.write()
        assert path.read_bytes() == b"line\n"
        assert caplog.text.count("moved to a.jsonl.aside") == number
        path.unlink()
    assert target.read_text() == "not ours"
    assert not (tmp_path / "none").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"target", "a.jsonl.aside", "a.jsonl.aside1"}
