"""Sparse evolutionary training."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from pydantic import model_validator
from torch import Tensor

from dynsparse.masks.selection import Cut
from dynsparse.methods.base import LayerChange, SomeShare, by_kept, in_parts
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import Scoped, ScopedSettings


class SetSettings(ScopedSettings):
    """Sparse evolutionary training (Mocanu et al. 2018): drop a fraction of each layer, grow there at random."""

    name: Literal["set"]
    fraction: SomeShare = 0.1
    """Fraction of each layer's active units to move (paper's `--rewire-fraction`)."""
    scaling: bool = False
    """Layers that keep more weights get more. If false, each layer gets back as many as it lost."""

    @model_validator(mode="after")
    def _scaling_has_an_effect(self) -> SetSettings:
        if self.scaling and self.scope == "global":
            raise ValueError(
                "scaling has no effect with scope global, where every free place is as likely to grow: leave it out, "
                "or set scope to layer"
            )
        return self

    def build(self) -> Set:
        return Set(self)


class Set(Scoped):
    """Sparse evolutionary training (Mocanu et al., Nature Communications 9, 2018), as in Mostafa & Wang 2019.

    Paper: "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network
    science".

    With the scope `global` one threshold over all layers says what falls, and each free place is as likely to grow.

    Departures: weights are dropped by magnitude, where the original drops the smallest positive and the largest
    negative ones. They move every `period` steps, where the original moves them once an epoch.
    """

    settings: SetSettings

    @property
    def trades(self) -> bool:
        return self.settings.scaling or super().trades

    def moved_share(self, clock: Clock) -> float:
        return self.settings.fraction

    @in_parts
    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        return self.cuts_of(scores, self.moved_share(clock))

    def shares(self, layers: Sequence[LayerChange]) -> Sequence[float | Fraction]:
        if self.settings.scope == "global":  # Every free place is as likely as every other.
            return [Fraction(layer.room * layer.unit_size) for layer in layers]
        return by_kept(layers) if self.settings.scaling else super().shares(layers)
