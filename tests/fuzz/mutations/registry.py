"""Mutations: their type, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.fuzz.scene import Scene

Act = Callable[[Random, Scene], str]
"""Changes the run's folder. Returns what it did."""


@dataclass(frozen=True)
class Mutation:
    name: str
    kind: str
    """Kind, which tells the commands that are likely to read the change: see `commands.LIKELY`."""
    act: Act
    absurd_config: bool = False
    """Whether a command that takes its config from the checkpoint may rightly train for ever, or take much memory."""


MUTATIONS: dict[str, Mutation] = {}


def mutation(kind: str, name: str | None = None, *, absurd_config: bool = False) -> Callable[[Act], Act]:
    """Add a function to `MUTATIONS`."""

    def add(act: Act) -> Act:
        known_as = f"{kind}:{name or act.__name__}"
        assert known_as not in MUTATIONS, known_as
        MUTATIONS[known_as] = Mutation(known_as, kind, act, absurd_config)
        return act

    return add


def place(rng: Random, length: int) -> int:
    """An index below `length`. One draw whatever the length, so that a case repeats though a file's size differs."""
    return int(rng.random() * length)
