"""The folder of a case: data, config and lists, and what a command may change of it."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines.sources.shard_index import INDEX_SUFFIX
from tests.fuzz.inputs import parquet_files
from tests.fuzz.scene import Snapshot, snapshot

FREE = ("runs", "out")
"""Folders in HOME where commands may write."""


@dataclass(frozen=True)
class Subject:
    """Inputs that are copied for a case, and then damaged."""

    name: str
    folder: Path
    """Holds data/, and reference/, a finished run on it."""
    config: dict[str, Any]
    images: tuple[str, ...]
    """Names of the samples, as messages call them."""


@dataclass
class Place:
    """HOME/data is the data set, HOME/F.yaml the config, HOME/outside files that no command may change."""

    home: Path
    subject: Subject
    config: dict[str, Any]
    suspects: dict[str, bytes] = field(default_factory=dict)
    """Samples whose bytes were changed, and the bytes."""
    overrides: list[str] = field(default_factory=list)
    text: bytes | None = None
    """Text of the config, where it is not `config` as YAML."""
    data_set: str = "imagenet"
    """Data set to prepare, of the subject that is archives."""
    touched: str = ""
    """Kind of the mutation."""
    completes: bool = False
    """Whether a command that goes on must end well."""
    writes: tuple[str, ...] = ()
    """Ends of names in HOME/data that a command may write."""

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def is_shards(self) -> bool:
        return self.subject.name == "shards"

    @property
    def has_own_config(self) -> bool:
        """Whether the config differs from its subject's."""
        return bool(self.overrides) or self.text is not None or self.config != self.subject.config

    def write_config(self) -> None:
        # Not sorted: keys of two types are part of the game.
        text = self.text if self.text is not None else yaml.safe_dump(self.config, sort_keys=False).encode()
        (self.home / "F.yaml").write_bytes(text)

    def put(self, name: str, content: bytes) -> None:
        """Give a sample other bytes."""
        path = self.data / name
        if self.is_shards:
            repacked(path.parent, {path.name: content})
        elif path.parent.suffix == parquet_files.SUFFIX:
            parquet_files.rewritten(path.parent, {int(path.name): content})
        else:
            path.write_bytes(content)
        self.suspects[name] = content

    def protected(self) -> Snapshot:
        """All that no command may change."""
        found = snapshot(self.home, leave_out=[self.home / name for name in FREE])
        return {name: what for name, what in found.items() if not (self.writes and name.endswith(self.writes))}


def build(home: Path, subject: Subject) -> Place:
    home.mkdir(parents=True)
    shutil.copytree(subject.folder, home, dirs_exist_ok=True)  # Times of change too: an index holds its shard's.
    for name in FREE:
        (home / name).mkdir()
    (home / "outside").mkdir()
    (home / "outside" / "file.txt").write_text("not of the data\n")
    return Place(home, subject, yaml.safe_load(yaml.safe_dump(subject.config)))


def repacked(shard: Path, changed: dict[str, bytes]) -> None:
    """Write a shard anew with other bytes for some of its members. Its index is then of another state."""
    with tarfile.open(shard) as tar:
        members = {member.name: (tar.extractfile(member) or io.BytesIO()).read() for member in tar}
    with tarfile.open(shard, "w") as tar:
        for name, content in {**members, **changed}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def without_indexes(data: Path) -> None:
    for path in data.rglob(f"*{INDEX_SUFFIX}"):
        os.unlink(path)
