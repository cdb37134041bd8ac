"""The folder of one case, and what stands in it before and after a command."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path

NAME = "a"
"""Name of the run that is damaged."""
OTHER = "b"
"""Name of the run that starts from its weights or masks."""
_WHOLE = 1 << 26
"""Bytes up to which a file is compared by its content; above, by its size and its two ends."""

Snapshot = dict[str, str]
"""Content at each path below a folder: kind, size and a hash."""


@dataclass(frozen=True)
class Subject:
    name: str
    run: Path
    config: str
    """Config of its run, in YAML, with paths relative to the folder of a case."""
    digests: dict[str, str]
    """Digests of masks and weights at the end of the undisturbed run."""
    checkpoints: frozenset[str]
    """Hashes of its checkpoints' bytes."""


@dataclass
class Scene:
    """HOME/runs/a is the run, HOME/outside are files that no command may change. Commands run in HOME."""

    home: Path
    other_run: Path
    """The whole run of another subject, to take files from. Read only."""
    moved: Path | None = None
    """A folder outside the run's that belongs to it, and may change."""
    strangers: list[str] = field(default_factory=list)
    """Hashes of files in the run's folder that are not of a run: each stays somewhere in it, byte for byte."""
    signed: bool = False
    """Whether a file with a right checksum has another content: then a run may end with other weights."""

    @property
    def run(self) -> Path:
        return self.home / "runs" / NAME

    @property
    def checkpoints(self) -> Path:
        return self.run / "checkpoints"

    @property
    def outside(self) -> Path:
        return self.home / "outside"

    def protected(self) -> Snapshot:
        """All that no command may change."""
        of_runs = [self.home / "runs" / name for name in (NAME, OTHER, f"{NAME}_preview.png")]
        return snapshot(self.home, leave_out=[*of_runs, self.home / "out", *([self.moved] if self.moved else [])])

    def stranger(self, path: Path) -> None:
        """Make a file that is not of a run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"not of the run: {path.relative_to(self.home)}\n")
        self.strangers.append(of_file(path))

    def strangers_gone(self) -> int:
        return len(set(self.strangers) - {of_file(path) for path in self._files()})

    def whole_checkpoints(self, known: frozenset[str]) -> dict[Path, str]:
        """The run's files that are, byte for byte, checkpoints of the undisturbed run, and their hashes."""
        hashes = {path: of_file(path) for path in self._files()}
        return {path: text for path, text in hashes.items() if text in known}

    def _files(self) -> list[Path]:
        return [path for folder in (self.run, self.moved) if folder is not None for path in regular_files(folder)]


def build(home: Path, subject: Subject, other_run: Path) -> Scene:
    """A copy of the subject's run, hard links within it kept, and files beside it."""
    home.mkdir(parents=True)
    scene = Scene(home, other_run)
    copy_run(subject.run, scene.run)
    (home / "F.yaml").write_text(subject.config)
    (home / "out").mkdir()
    (scene.outside / "folder").mkdir(parents=True)
    (scene.outside / "file.txt").write_text("not of the run\n")
    (scene.outside / "folder" / "step-000000099.pt").write_text("not of the run either\n")
    (scene.outside / "folder" / "kept.partial").write_text("nor this\n")
    shutil.copyfile(next(subject.run.glob("checkpoints/step-*.pt")), scene.outside / "whole.pt")
    return scene


def copy_run(source: Path, target: Path) -> None:
    seen: dict[int, Path] = {}
    for path in [source, *sorted(source.rglob("*"))]:
        to = target / path.relative_to(source)
        if path.is_dir():
            to.mkdir(parents=True)
        elif (inode := path.stat().st_ino) in seen:
            os.link(seen[inode], to)
        else:
            shutil.copyfile(path, to)
            seen[inode] = to


def regular_files(folder: Path) -> list[Path]:
    """Files that could be a checkpoint: regular, and not large. Links are not followed, except `folder` itself."""
    found = (Path(top) / name for top, _, names in os.walk(folder, followlinks=False) for name in names)
    return [path for path in found if _is_small(path)]


def _is_small(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size < _WHOLE and os.access(path, os.R_OK)


def of_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def snapshot(folder: Path, leave_out: list[Path] | None = None) -> Snapshot:
    found: Snapshot = {}
    left_out = {str(path) for path in leave_out or ()}
    for top, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if os.path.join(top, name) not in left_out]
        for name in [*folders, *names]:
            path = Path(top) / name
            if str(path) not in left_out:
                found[str(path.relative_to(folder))] = describe(path)
    return found


def describe(path: Path) -> str:
    try:
        status = path.lstat()
    except OSError:
        return "absent"
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFLNK:
        return f"link to {os.readlink(path)}"
    if kind != stat.S_IFREG:
        return f"kind {kind:o}"
    if not os.access(path, os.R_OK):
        return f"closed file {status.st_size}"
    if status.st_size <= _WHOLE:
        return f"file {status.st_size} {of_file(path)}"
    with path.open("rb") as file:
        ends = file.read(4096)
        file.seek(-4096, os.SEEK_END)
        ends += file.read()
    return f"file {status.st_size} {hashlib.sha256(ends).hexdigest()}"


def changes(before: Snapshot, after: Snapshot) -> list[str]:
    return [
        f"{name}: {before.get(name, 'absent')[:80]} -> {after.get(name, 'absent')[:80]}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def bytes_on_disk(folder: Path) -> int:
    """Bytes that the regular files take on the disk, without holes."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            status = (Path(top) / name).lstat()
            total += status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0
    return total
