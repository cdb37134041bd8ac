"""Gradual magnitude pruning: from dense to sparse, and nothing grows back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import model_validator
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec
from dynsparse.masks.selection import NO_CUT, Cut
from dynsparse.methods.base import in_parts
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import Scoped, ScopedSettings, is_set
from dynsparse.schedules import AnyDensity, CubicDensity, Period, StepTable


class GmpSettings(ScopedSettings):
    """Gradual magnitude pruning (Zhu & Gupta 2018), from scratch: the smallest weights go as the density falls."""

    name: Literal["gmp"]
    period: Period = StepTable(((0, 100),))
    """Steps between prunes, by epoch."""
    density: AnyDensity = CubicDensity(name="cubic")
    """Course of the density from the first step to the config's `sparsity`."""

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> GmpSettings:
        if is_set(self, "stop_epoch"):
            raise ValueError(
                f"stop_epoch is {self.stop_epoch}, and has no effect: no weights are exchanged, and density says when "
                f"pruning ends: leave it out"
            )
        if self.density.by_epochs and is_set(self, "period"):
            raise ValueError(
                f"period has no effect with density {self.density.name}, which changes at the end of epochs: leave it "
                f"out"
            )
        return self

    def build(self) -> Gmp:
        return Gmp(self)


class Gmp(Scoped):
    """Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2018.

    The sparsity follows s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 (eq. 1). At each prune the smallest
    |weights| go, in each layer or by one threshold over all of them.

    In the original, too, a pruned weight gets no update. Departures: its value is lost here, and it never returns. With
    `alternating` as the density, what grows begins at 0.
    """

    settings: GmpSettings

    def check(self, layers: Sequence[LayerSpec], active_units: Mapping[str, int]) -> None:
        super().check(layers, active_units)
        grows = self.settings.density.by_epochs or any(last > first for first, last in self._way(layers))
        if is_set(self.settings, "new_weights") and not grows:
            raise UserError(
                f"method.new_weights is {self.settings.new_weights}, and no weight grows, as the density only falls: "
                f"leave it out"
            )

    def moves(self, clock: Clock) -> bool:
        """Whether weights move at the same density: never."""
        return False

    def moved_share(self, clock: Clock) -> float:
        return 0.0

    @in_parts
    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        """Choose none: the budget says how many of the lowest scores go."""
        return [NO_CUT] * len(scores)
