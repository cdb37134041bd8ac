"""Mutations of inputs: their type, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.fuzz.inputs.place import Place

Act = Callable[[Random, Place], str]
"""Changes the data, the config or the lists. Returns what it did."""

SUBJECTS = {
    "image": ("folder", "folder", "shards", "parquet"),
    "file": ("folder",),
    "tree": ("folder",),
    "shard": ("shards",),
    "index": ("shards",),
    "list": ("folder", "shards"),
    "parquet": ("parquet",),
    "archive": ("archives",),
    "target": ("archives",),
    "config": ("folder", "synthetic", "synthetic", "shards"),
}
"""Targets of each kind of mutation."""


@dataclass(frozen=True)
class Mutation:
    name: str
    kind: str
    act: Act


MUTATIONS: dict[str, Mutation] = {}


def mutation(kind: str, name: str | None = None) -> Callable[[Act], Act]:
    """Add a function to `MUTATIONS`."""
    assert kind in SUBJECTS, kind

    def add(act: Act) -> Act:
        known_as = f"{kind}:{name or act.__name__}"
        assert known_as not in MUTATIONS, known_as
        MUTATIONS[known_as] = Mutation(known_as, kind, act)
        return act

    return add
