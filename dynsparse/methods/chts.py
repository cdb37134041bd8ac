"""CHTs: links fall by a soft draw, and grow where the topology of the layer expects them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import model_validator
from torch import Tensor

from dynsparse.masks import SparseLayer
from dynsparse.masks.selection import Cut, cuts_fraction
from dynsparse.masks.topology import link_scores, relative_importance
from dynsparse.methods.base import SomeShare
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import Dynamic, DynamicSettings, Power
from dynsparse.schedules import Period, StepTable


class ChtsSettings(DynamicSettings):
    """CHTs (Zhang et al. 2025): soft removal, growth by topology alone; with a `sigmoid` density it is CHTss."""

    name: Literal["chts"]
    period: Period = StepTable(((0, 100),))
    """Steps between reallocations, by epoch."""
    fraction: SomeShare = 0.3
    """Fraction of each layer's active units to move (zeta)."""
    removal: Literal["magnitude", "relative"] = "magnitude"
    """Score for dropping: |w|, or |w| over the sums of its output and of its input (relative importance)."""
    soft_drop: Power = 1
    """Power of the draw of what falls at the start, by weights of 1 / score^power; 0: the lowest scores fall."""
    final_soft_drop: Power = 9
    """Power at the end of the run. In between it goes in a straight line, in whole numbers."""
    soft_growth: Power = 1
    """Draw what grows by weights of score^power, without replacement; 0: the highest scores grow."""

    @model_validator(mode="after")
    def _soft_or_not(self) -> ChtsSettings:
        if (self.soft_drop == 0) != (self.final_soft_drop == 0):
            raise ValueError(
                f"soft_drop is {self.soft_drop} and final_soft_drop is {self.final_soft_drop}; 0 draws nothing: set "
                f"both to 0, or none"
            )
        return self

    def build(self) -> Chts:
        return Chts(self)


class Chts(Dynamic):
    """Zhang et al., NeurIPS 2025: Cannistraci-Hebb training, soft rule.

    Paper: "Brain network science modelling of sparse neural networks enables Transformers and LLMs to perform as fully
    connected". Removal (eq. 2): a fraction of each layer's links falls, drawn by their scores to the power
    delta / (1 - delta). Delta rises from 0.5 to 0.9, the power from 1 to 9. Growth: as many, drawn by the CH2-L3n score
    of the layer's bipartite network (`topology.ch2_l3n`). No gradient is read. CHTss: the density falls along a
    sigmoid, `density: {name: sigmoid, start: 0.5}`.

    The equations themselves could not be read: they are taken from the authors' code. The paper's text and the code for
    machine translation let delta end at 0.75, which is `final_soft_drop: 3`. The paper's appendix has 0.9.

    Departures: scores for growth come from the links before the removal, and what falls in an event does not grow in
    it. The draw is of the links that fall, by 1 / score; the original draws those that stay. Under a density schedule
    both removals are one; the original first prunes by relative importance, then removes: set `removal`. First masks
    are not a bipartite receptive field, but as `sparsity.initial` says. Links to neurons that have none on their other
    side stay (no percolation). Heads of attention, and groups of a convolution, count as one layer. Whole filters have
    no paths and grow at random. The fraction is constant; the authors' script for machine translation lets
    it fall along a cosine.

    An event takes 4 bytes a weight, 12 with a soft draw, and 9 more a weight of the layer at work. The time is that of
    products in float64: outputs x inputs x (outputs + inputs) multiplications, twice.
    """

    settings: ChtsSettings

    @property
    def gain(self) -> float:
        """Infinity: the scores tell nothing about gradients."""
        return math.inf

    @property
    def grows_by_gradient(self) -> bool:
        return False

    def soft_drop_at(self, clock: Clock) -> int:
        first, last = self.settings.soft_drop, self.settings.final_soft_drop
        return round(first + (last - first) * clock.progress)

    def drop_scores(self, layer: SparseLayer) -> Tensor:
        magnitudes = super().drop_scores(layer)
        return magnitudes if self.settings.removal == "magnitude" else relative_importance(layer, magnitudes)

    def moved_share(self, clock: Clock) -> float:
        return self.settings.fraction

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        return cuts_fraction(scores, self.moved_share(clock))

    def grow_scores(self, layer: SparseLayer) -> Tensor:
        if layer.is_full:  # Nothing can grow, and a dense network has no pattern.
            return layer.weight.new_zeros(layer.spec.units)
        return link_scores(layer)
