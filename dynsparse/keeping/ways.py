"""Ways to give the first masks, and the arguments of the front door that each of them uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynsparse.errors import UserError
from dynsparse.first_masks import ScoredMasks, SynflowMasks
from dynsparse.keeping.asked import Asked
from dynsparse.keeping.first import Given
from dynsparse.masks import MaskSet

UNSAID: Mapping[str, object] = {
    "sparsity": None,
    "allocation": "uniform",
    "granularity": 4,
    "structure": "free",
    "include": None,
    "exclude": [],
    "split": {},
    "batches": None,
    "loss": None,
}
"""Arguments that say something of the first masks, with their values where they say nothing."""
_OF_LAYERS = frozenset({"granularity", "structure", "split"})
_OF_DRAWS = _OF_LAYERS | {"sparsity", "allocation", "include", "exclude"}


@dataclass(frozen=True)
class Way:
    """One way to give the first masks."""

    uses: frozenset[str]
    """Names of `UNSAID`. The others would have no effect, and are refused."""
    words: str

    def require_used(self, asked: Asked, given: Given) -> None:
        """Raise UserError for arguments that would have no effect."""
        values = {**dict(asked), "batches": given.batches, "loss": given.loss}
        idle = [f"{name}=" for name, unsaid in UNSAID.items() if name not in self.uses and _says(values[name], unsaid)]
        if idle:
            verb, them = ("has", "it") if len(idle) == 1 else ("have", "them")
            raise UserError(f"{_listed(idle)} {verb} no effect {self.words}: leave {them} out")


WAYS: Mapping[str, Way] = {
    "drawn": Way(_OF_DRAWS, "without masks by score ('snip', 'grasp', 'synflow')"),
    "by score": Way(_OF_DRAWS | {"batches", "loss"}, "with masks by score"),
    "by synflow": Way(_OF_DRAWS | {"batches"}, "with masks by synflow, which looks at no loss"),
    "own": Way(_OF_LAYERS, "with masks={...}, which names the layers and their active weights"),
    "MaskSet": Way(frozenset(), "with a MaskSet as masks=, which has its layers, units and active weights already"),
}


def way_of(masks: object, scores: ScoredMasks | None) -> Way:
    """Return the way in which masks are given: `masks=`, or what it says of scores."""
    if scores is not None:
        return WAYS["by synflow" if isinstance(scores, SynflowMasks) else "by score"]
    if isinstance(masks, MaskSet):
        return WAYS["MaskSet"]
    return WAYS["own" if isinstance(masks, Mapping) else "drawn"]


def _says(value: Any, unsaid: object) -> bool:
    return value is not None if unsaid is None else bool(value != unsaid)


def _listed(names: list[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]
