"""A recipe: what all runs of a table share, and what its rows are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Config = dict[str, Any]
FRACTION = 0.1
"""Fraction of the active weights moved in one reallocation: dynamic sparse training's aim, and what SET drops."""

METHODS = {
    "dense": "dense",
    "pruning": "iterative pruning of the dense network",
    "dsr": "dynamic sparse reparameterization",
    "sparse_momentum": "sparse momentum",
    "rigl": "RigL",
    "rigl_erk": "RigL, ERK",
    "set": "SET",
    "deepr": "DeepR",
    "static": "static sparse",
    "tied": "tied (HashedNets)",
    "thin": "thin dense",
}


class Part(NamedTuple):
    """A row of a table that is no method, such as a part of a recipe."""

    title: str
    settings: Config
    at: Mapping[float, Config] = {}
    """More settings, by sparsity."""


@dataclass(frozen=True)
class Recipe:
    """Settings that all methods on a data set share."""

    title: str
    """The data, for headings."""
    about: str
    """The network and how it is trained, in a sentence or more."""
    base: Config
    kind: Literal["conv", "fc", "all"]
    """Kind of the sparse layers."""
    seeds: dict[str, int]
    """Seeds of each method of the table."""
    sparsities: tuple[float, ...]
    sparse_weights: int = 0
    """Weights in these layers."""
    period: dict[int, int] = field(default_factory=dict)
    stop_epoch: int = 0
    pruning_epochs: int = 0
    """Epochs of pruning, after those of the dense network that is pruned."""
    pruning: Config = field(default_factory=dict)
    """Settings of pruning, over those of `settings_of`."""
    thin: dict[float, Config] = field(default_factory=dict)
    """Settings of the dense network with as many parameters, by sparsity."""
    target_moves: int | None = None
    """Weights that dynamic sparse reparameterization and SET aim to move in one reallocation; else `FRACTION` of the
    active ones."""
    beside: dict[str, str] = field(default_factory=dict)
    """Recipes of some of the same runs made in another way, which the page shows beside them; each says how."""
    beside_told: str = "The same again, read in another way, which must change no more than another seed does:"
    """Sentences of the page before these runs."""
    methods: dict[str, Config] = field(default_factory=dict)
    """Settings by method, in place of those of `settings_of`."""
    parts: dict[str, Part] = field(default_factory=dict)
    """Rows of the table, where they are no methods."""
    sparse: Config = field(default_factory=dict)
    """Settings that make each of the parts sparse."""
    page: str = "reproduce"
    """Template of the page."""
    costs: bool = False
    """Whether the page has what each of the parts takes: FLOPs, weights, memory."""
    seconds: str = ""
    """JSON with the seconds of each of the parts, side by side, which the page shows too."""
    told: str = ""
    """Sentences for the page: what the table tells."""
    settings_told: str = ""
    """Sentences for the page before published figures are judged: where the settings are from."""

    @property
    def titles(self) -> dict[str, str]:
        """Names of the rows, in their order."""
        return {name: part.title for name, part in self.parts.items()} if self.parts else METHODS

    def sparsity(self, sparsity: float) -> Config:
        """Return the section of the config that makes the sparse layers so sparse, and the others dense."""
        return {kind: sparsity if self.kind in (kind, "all") else 0.0 for kind in ("conv", "fc")}

    def moves(self, sparsity: float) -> tuple[int, float]:
        """Return the weights to move in one reallocation, and what fraction of the active ones that is."""
        active = (1 - sparsity) * self.sparse_weights
        moved = round(FRACTION * active) if self.target_moves is None else self.target_moves
        return moved, FRACTION if self.target_moves is None else round(moved / active, 4)


def merged(base: Config, more: Config) -> Config:
    """Lay `more` over `base`, section by section; a section of another name replaces it."""
    result = dict(base)
    for key, value in more.items():
        known = result.get(key)
        both = isinstance(value, dict) and isinstance(known, dict) and value.get("name") in (None, known.get("name"))
        table = both and any(isinstance(k, int) for k in value)  # By epoch: one value.
        result[key] = merged(result[key], value) if both and not table else value
    return result
