"""The base of methods whose active weights are the largest of all, inactive ones included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor

from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.reserve import Reserve, check_saved
from dynsparse.masks.selection import Cut
from dynsparse.masks.structure import groups_of, ranks_in_groups
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import Dynamic, DynamicSettings, is_set
from pipelines.common.settings import Count


class ReservedSettings(DynamicSettings):
    """Base of the settings of methods that take the largest of all weights."""

    stop_epoch: Count = 1000
    """Choose weights, and train those in reserve, only before this epoch."""

    @model_validator(mode="after")
    def _weights_have_values(self) -> ReservedSettings:
        refuse_draws(self)
        return self


def refuse_draws(settings: DynamicSettings) -> None:
    """Raise ValueError for options that choose or begin what grows: here all weights have values, which decide."""
    for name in ("new_weights", "soft_drop", "soft_growth"):
        if is_set(settings, name):
            raise ValueError(
                f"{name} is {getattr(settings, name)}, and has no effect: the largest of all weights are active, with "
                f"the values that they have in reserve: leave it out"
            )


class Reserved(Dynamic):
    """Base of methods that keep inactive weights in reserve, and let the largest of all be the active ones.

    An event ranks all units of a layer, or of each group of its structure, by mean |w|. The highest are active from
    then on. A unit keeps its values and its optimizer state where it moves. In between, inactive units with a gradient
    make the optimizer's steps, weight decay included, until `stop_epoch`: see `masks.reserve`. Their gradient is the
    one before clipping.
    """

    keeps_reserve = True
    drops_by_count = False
    share = 1.0
    """Fraction of each layer's units that train beside the active ones."""

    @property
    def gain(self) -> float:
        """Infinity: growth scores are weights, and tell nothing about gradients."""
        return math.inf

    @property
    def grows_by_gradient(self) -> bool:
        """Whether growth scores are of the very step's gradients: never."""
        return False

    def moves(self, clock: Clock) -> bool:
        """Whether the largest become the active ones: also after the last step, for all weights have trained."""
        return self._may_move(clock)

    def prepare(self, masks: MaskSet) -> None:
        """Learn the layers, and keep the values that weights have outside the masks."""
        self.masks = masks
        self.reserve = Reserve(masks, self.share)

    def observes_at(self, clock: Clock) -> bool:
        """Whether inactive weights train in the step that ends at `clock`."""
        return self.observes and clock.epoch < self.settings.stop_epoch

    def wants_whole_gradients(self, clock: Clock) -> bool:
        """Whether inactive weights train in the step that ends at `clock`."""
        return self.observes_at(clock)

    def pull(self, layer: SparseLayer) -> float:
        """Factor of an inactive weight that is added to its gradient. Default: 0."""
        return 0.0

    def observe(self, layer: SparseLayer, gradient: Tensor) -> None:
        """Take the gradients of weights in reserve."""
        assert self.reserve is not None
        self.reserve.note(layer, gradient, self.pull(layer))

    def learnt(self, layer: SparseLayer) -> Sequence[Tensor]:
        """Return no tensors: gradients are forgotten in the reserve's step, which a device skips as the optimizer's."""
        return ()

    def drop_scores(self, layer: SparseLayer) -> Tensor:
        """Negated rank of each active unit among all of its group, float [active units]: 0 for the largest.

        NaN for a unit that has a NaN, so that it is found.
        """
        assert self.reserve is not None
        costs, groups = self.reserve.costs(layer), groups_of(layer.spec)
        rows = costs.view(1, -1) if groups is None else groups.of(costs)
        ranks = ranks_in_groups(rows)
        by_unit = ranks.view(-1) if groups is None else groups.units(ranks)
        return with_nan(-by_unit.index_select(0, layer.active).double(), costs.index_select(0, layer.active))

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        """Take what is not among the largest, as many as its group is to have."""
        if not scores:
            return []
        wanted = zip(self.masks, self.units_after(list(self.masks), clock), strict=True)
        places = [units // _groups(layer) for layer, units in wanted]
        falls = [(ranks <= -most).count_nonzero() for ranks, most in zip(scores, places, strict=True)]
        counts = torch.stack(falls).tolist()
        return [Cut(0.5 - most, 0, count) for most, count in zip(places, counts, strict=True)]

    def grow_scores(self, layer: SparseLayer) -> Tensor:
        """Mean |w| of each unit, active or not: float [units]."""
        assert self.reserve is not None
        return -self.reserve.costs(layer)

    def begin(self, layer: SparseLayer, units: Tensor, generator: torch.Generator) -> Tensor | None:
        """First weights of grown units: those that they have in reserve."""
        assert self.reserve is not None
        return self.reserve.values(layer, units)

    def state_dict(self) -> dict[str, Any]:
        """The reserve: for each layer values of all inactive weights, units that train, and their optimizer state."""
        assert self.reserve is not None
        return {"reserve": self.reserve.state_dict()}

    def check_state(self, state: Mapping[str, Any], layers: Mapping[str, tuple[Sequence[int], int]]) -> None:
        """Raise ValueError or KeyError for a state that is no reserve of these layers."""
        try:
            check_saved(state["reserve"], {name: shape for name, (shape, _) in layers.items()})
        except ValueError as error:
            raise ValueError(f"reserve.{error}") from None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved reserve."""
        assert self.reserve is not None
        self.reserve.load_state_dict(state["reserve"])


def with_nan(scores: Tensor, costs: Tensor) -> Tensor:
    """Return scores with NaN where the costs of the same units are NaN."""
    return torch.where(costs.isnan(), torch.nan, scores)


def _groups(layer: SparseLayer) -> int:
    """Number of groups of a layer's units: 1 without a structure."""
    groups = groups_of(layer.spec)
    return 1 if groups is None else groups.count
