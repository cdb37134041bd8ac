"""Iterative pruning of a trained dense network."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from dynsparse.errors import UserError, nearest
from dynsparse.masks import LayerSpec, MaskSet
from dynsparse.masks.allocation import share_out
from dynsparse.masks.granularity import Kind
from dynsparse.masks.selection import Cut, cuts_smallest
from dynsparse.methods.base import Clock, Method, MethodSettings

Target = Annotated[float, Field(ge=0, lt=1)]


class PruningSettings(MethodSettings):
    """Iterative pruning by magnitude, from the dense network `start.weights_from`; nothing grows back."""

    name: Literal["pruning"]
    after_epoch: Annotated[int, Field(ge=0)] = 20
    """The first prune comes at the end of this epoch, counted from 0 (paper's `--start-pruning-after-epoch`)."""
    every_epochs: Annotated[int, Field(ge=1)] = 2
    """Epochs between prunes."""
    iterations: Annotated[int, Field(ge=1)] = 1
    """Number of prunes."""
    schedule: Literal["exponential", "cubic"] = "exponential"
    """exponential: the same share of what is left each time; cubic: Zhu & Gupta 2018."""
    target_conv: Target = 0.5
    """Share of zeros in each sparse convolution after the last prune."""
    target_fc: Target = 0.98
    """And in each sparse linear layer."""
    max_sparsity: dict[str, Target] = {}
    """Shell patterns of layers and the most that each may be pruned to; the others of its kind take up the rest."""

    def build(self) -> Pruning:
        return Pruning(self)

    @property
    def starts(self) -> Literal["dense"]:
        return "dense"

    @property
    def last_prune(self) -> int:
        """The epoch, counted from 0, that ends with the last prune."""
        return self.after_epoch + (self.iterations - 1) * self.every_epochs


class Pruning(Method):
    """Magnitude pruning in steps (Han et al. 2015; Mostafa & Wang 2019), layer by layer.

    After prune k of n a layer of final density d has the density d^(k/n), so that each prune takes the share
    1 - (1 - target)^(1/n) of what is left; or with `cubic` 1 - (1 - d) (1 - (1 - k/n)^3) (Zhu & Gupta, "To prune,
    or not to prune", 2018, eq. 1). What the layers of a kind keep in the end sums exactly to what `uniform` would
    give them, whatever `max_sparsity` says.
    """

    def __init__(self, settings: PruningSettings) -> None:
        self.settings = settings

    def prepare(self, masks: MaskSet) -> None:
        specs = [layer.spec for layer in masks]
        known = [spec.name for spec in specs]
        for pattern in self.settings.max_sparsity:
            if not fnmatch.filter(known, pattern):
                raise UserError(f"method.max_sparsity: '{pattern}' matches no sparse layer{nearest(pattern, known)}")
        self.masks = masks
        #: Units that each layer keeps after the last prune.
        self.final = {**self._final(specs, "conv"), **self._final(specs, "fc")}

    def is_due(self, clock: Clock) -> bool:
        since = clock.epoch - self.settings.after_epoch
        due = since >= 0 and since % self.settings.every_epochs == 0 and clock.epoch <= self.settings.last_prune
        return due and clock.ends_epoch

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        keeps = self._keeps(clock)
        counts = [layer.active_units - keeps[layer.name] for layer in self.masks]
        return cuts_smallest(scores, [max(0, count) for count in counts])

    def budget(self, budget: int, clock: Clock) -> int:
        keeps = self._keeps(clock)
        return min(budget, sum(keeps[layer.name] * layer.spec.unit_size for layer in self.masks))

    def _keeps(self, clock: Clock) -> dict[str, int]:
        """Units that each layer keeps after the prune at `clock`."""
        done = (clock.epoch - self.settings.after_epoch) // self.settings.every_epochs + 1
        share = done / self.settings.iterations
        if done == self.settings.iterations:
            return self.final
        return {
            layer.name: max(self.final[layer.name], round(self._density(layer.spec, share) * layer.spec.units))
            for layer in self.masks
        }

    def _density(self, spec: LayerSpec, share: float) -> float:
        """Of a layer when `share` of the prunes are done."""
        final = self.final[spec.name] / spec.units
        if self.settings.schedule == "exponential":
            return float(final**share)
        return 1 - (1 - final) * (1 - (1 - share) ** 3)

    def _final(self, specs: Sequence[LayerSpec], kind: Kind) -> dict[str, int]:
        specs = [spec for spec in specs if spec.kind == kind]
        target = self.settings.target_conv if kind == "conv" else self.settings.target_fc
        total = sum(_kept(spec, target) * spec.unit_size for spec in specs)
        limited = [spec for spec in specs if self._limit(spec) < target]
        others = [spec for spec in specs if spec not in limited]
        keeps = {spec.name: _kept(spec, min(target, self._limit(spec))) for spec in specs}
        if limited:
            left = total - sum(keeps[spec.name] * spec.unit_size for spec in limited)
            sizes = [spec.unit_size for spec in others]
            units = share_out(max(0, left), [spec.weights for spec in others], [spec.units for spec in others], sizes)
            keeps |= {spec.name: count for spec, count in zip(others, units, strict=True)}
            if left < 0 or not others:
                raise UserError(
                    f"method.max_sparsity: {', '.join(spec.name for spec in limited)} alone would keep "
                    f"{total - left:,} weights, method.target_{kind} {target} asks for {total:,} in all; "
                    f"allow more sparsity or lower the target"
                )
        for spec in specs:
            if keeps[spec.name] < 1:
                raise UserError(
                    f"method.target_{kind} is {target}: {spec.name} has {spec.units:,} units and would keep none; "
                    f"each layer keeps at least one: lower the target, or limit the layer in method.max_sparsity"
                )
        return keeps

    def _limit(self, spec: LayerSpec) -> float:
        limits = [most for pattern, most in self.settings.max_sparsity.items() if fnmatch.fnmatch(spec.name, pattern)]
        return min(limits, default=1.0)


def _kept(spec: LayerSpec, sparsity: float) -> int:
    return round(Fraction(spec.units) * (1 - Fraction(str(sparsity))))
