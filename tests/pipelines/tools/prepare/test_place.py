"""A folder that is filled, on file systems with ways of their own."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.sources.parts import UNFINISHED
from pipelines.tools.prepare.place import held


def test_a_folder_is_filled_on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client keeps an open file that is removed, under another name in the same folder, until it is closed."""
    remove, close = os.unlink, os.close

    def unlink(path: str, *, dir_fd: int | None = None) -> None:
        here = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/self/fd/{number}"), here):
                    os.rename(path, ".nfs0001", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
                    hidden.append(int(number))
                    return
        remove(path, dir_fd=dir_fd)

    def closes(number: int) -> None:
        close(number)
        if number in hidden:
            remove(tmp_path / "out" / UNFINISHED / ".nfs0001")

    hidden: list[int] = []
    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(os, "close", closes)
    with held(tmp_path / "out") as place:
        place.write(place.folder("train") / "a", [b"a"])
    assert hidden
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {
        "out",
        "out/train",
        "out/train/a",
    }
