"""Iterative pruning of a trained dense network."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, MaskSet, SparseLayer
from dynsparse.masks.allocation import share_out
from dynsparse.masks.granularity import Kind
from dynsparse.masks.selection import Cut, cuts_smallest
from dynsparse.methods.base import Method, MethodSettings, in_parts
from dynsparse.methods.clock import Clock
from pipelines.common.settings import AtLeast1, Count
from pipelines.common.text import alike, cut

Target = Annotated[float, Field(ge=0, lt=1)]


class PruningSettings(MethodSettings):
    """Iterative pruning by magnitude, from the dense network `start.weights_from`. Nothing grows back."""

    name: Literal["pruning"]
    after_epoch: Count = 20
    """The first prune comes at the end of this epoch, counted from 0 (paper's `--start-pruning-after-epoch`)."""
    every_epochs: AtLeast1 = 2
    """Epochs between prunes."""
    iterations: AtLeast1 = 1
    """Number of prunes."""
    schedule: Literal["exponential", "cubic"] = "exponential"
    """exponential: the same fraction of the remaining weights each time; cubic: Zhu & Gupta 2018."""
    target_conv: Target = 0.5
    """Fraction of zeros in each sparse convolution after the last prune."""
    target_fc: Target = 0.98
    """Fraction of zeros in each sparse linear layer after the last prune."""
    max_sparsity: dict[str, Target] | None = None
    """Shell patterns of layers, and the most sparsity for each. The other layers of its kind are pruned more.
    null: as the model has it (`mnist_mlp`: 0.9 for its last layer, which is small)."""

    def build(self) -> Pruning:
        return Pruning(self)

    @property
    def starts(self) -> Literal["dense"]:
        return "dense"

    def aiming_at(self, sparsity: Mapping[Kind, float]) -> PruningSettings:
        targets = {f"target_{kind}": value for kind, value in sparsity.items()}
        for name, value in targets.items():
            if name in self.model_fields_set and getattr(self, name) != value:
                raise UserError(
                    f"sparsity asks for {value:g} and method.{name} for {getattr(self, name):g}; give one of them"
                )
        return self.model_copy(update=targets)

    @property
    def needs_weights(self) -> bool:
        return True

    def require_epochs(self, epochs: int) -> None:
        if self.last_prune >= epochs:
            raise ValueError(
                f"train.epochs is {epochs}; the last of {self.iterations} prunes comes at the end of epoch "
                f"{self.last_prune} (counted from 0): train at least {self.last_prune + 1}"
            )

    def with_limits(self, limits: Mapping[str, float]) -> PruningSettings:
        return self if self.max_sparsity is not None else self.model_copy(update={"max_sparsity": dict(limits)})

    def final_sparsity(self, sparsity: Mapping[Kind, float]) -> Mapping[Kind, float]:
        return {"conv": self.target_conv, "fc": self.target_fc}

    @property
    def last_prune(self) -> int:
        """The epoch, counted from 0, that ends with the last prune."""
        return self.after_epoch + (self.iterations - 1) * self.every_epochs


class Pruning(Method):
    """Magnitude pruning in steps (Han et al. 2015; Mostafa & Wang 2019), layer by layer.

    After prune k of n a layer of final density d has the density d^(k/n): each prune takes the same fraction
    1 - (1 - target)^(1/n) of the remaining weights. With `cubic` it is 1 - (1 - d) (1 - (1 - k/n)^3) (Zhu & Gupta, "To
    prune, or not to prune", 2018, eq. 1).

    In the end the layers of a kind keep together 1 - target of their weights, rounded once, whatever `max_sparsity`
    says. Where units hold several weights, it is exact to within one unit.
    """

    def __init__(self, settings: PruningSettings) -> None:
        self.settings = settings

    @property
    def shrink_obstacle(self) -> str:
        return "takes each layer's budget from its size"

    def check(self, layers: Sequence[LayerSpec], active_units: Mapping[str, int]) -> None:
        self._learn(layers)

    def _learn(self, layers: Sequence[LayerSpec]) -> None:
        """Compute `final`. UserError for settings that these layers cannot meet."""
        known = [layer.name for layer in layers]
        for pattern in self.settings.max_sparsity or {}:
            if not fnmatch.filter(known, pattern):
                raise UserError(f"method.max_sparsity: '{cut(pattern)}' matches no sparse layer{alike(pattern, known)}")
        #: Units that each layer keeps after the last prune.
        self.final = {**self._final(layers, "conv"), **self._final(layers, "fc")}

    def prepare(self, masks: MaskSet) -> None:
        self.masks = masks
        self._learn([layer.spec for layer in masks])

    @property
    def counts_epochs(self) -> bool:
        return True

    def check_length(self, end: Clock) -> None:
        last = self.settings.last_prune
        if end.whole_epochs <= last:
            epochs = end.epoch + end.epoch_steps / end.steps_per_epoch
            raise UserError(
                f"the run has {end.step:,} steps, {epochs:g} epochs; the last of "
                f"{self.settings.iterations} prunes comes at the end of epoch {last} (counted from 0): train at least "
                f"{last + 1} epochs, or lower method.after_epoch, every_epochs or iterations"
            )

    def is_due(self, clock: Clock) -> bool:
        since = clock.epoch - self.settings.after_epoch
        due = since >= 0 and since % self.settings.every_epochs == 0 and clock.epoch <= self.settings.last_prune
        return due and clock.ends_epoch

    def is_settled(self, clock: Clock) -> bool:
        return clock.epoch >= self.settings.last_prune

    @in_parts
    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        keeps = self._keeps(clock)
        counts = [layer.active_units - keeps[layer.name] for layer in self.masks]
        return cuts_smallest(scores, [max(0, count) for count in counts])

    def budgets(self, layers: Sequence[SparseLayer], clock: Clock) -> Sequence[int]:
        keeps = self._keeps(clock)
        return [min(layer.active_units, keeps[layer.name]) * layer.spec.unit_size for layer in layers]

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
        """Density of a layer when the fraction `share` of the prunes is done."""
        final = self.final[spec.name] / spec.units
        if self.settings.schedule == "exponential":
            return float(final**share)
        return 1 - (1 - final) * (1 - (1 - share) ** 3)

    def _final(self, layers: Sequence[LayerSpec], kind: Kind) -> dict[str, int]:
        """Units that each layer of a kind keeps after the last prune."""
        layers = [layer for layer in layers if layer.kind == kind]
        target = self.settings.target_conv if kind == "conv" else self.settings.target_fc
        total = round(sum(layer.weights for layer in layers) * (1 - Fraction(str(target))))
        keeps = self._divided(layers, total, f"method.target_{kind} {target}")
        for layer in layers:
            if keeps[layer.name] < 1:
                raise UserError(
                    f"method.target_{kind} is {target}: {layer.name} has {layer.units:,} units and would keep none; "
                    f"each layer keeps at least one: lower the target, or limit the layer in method.max_sparsity"
                )
        return keeps

    def _divided(self, layers: Sequence[LayerSpec], total: int, target: str) -> dict[str, int]:
        """Divide `total` weights in proportion to the layers' weights, and give none less than `max_sparsity` leaves.

        Example: 20 weights to keep in two layers of 100, of which the first may lose 85 %. In proportion each would
        keep 10. The first is short of its 15 and gets them; the second keeps the 5 that are left.
        """
        least = {layer.name: self._least(layer) for layer in layers}
        keeps: dict[str, int] = {}
        left, others = total, layers
        while True:  # Each round settles a layer, or ends.
            sizes = [layer.unit_size for layer in others]
            units = share_out(left, [layer.weights for layer in others], [layer.units for layer in others], sizes)
            short = [layer for layer, count in zip(others, units, strict=True) if count < least[layer.name]]
            if not short:
                return keeps | {layer.name: count for layer, count in zip(others, units, strict=True)}
            keeps |= {layer.name: least[layer.name] for layer in short}
            left -= sum(least[layer.name] * layer.unit_size for layer in short)
            others = [layer for layer in others if layer not in short]
            if left < 0:
                raise UserError(
                    f"method.max_sparsity: {', '.join(keeps)} would keep {total - left:,} weights, "
                    f"{target} asks for {total:,} in all; allow more sparsity or lower the target"
                )

    def _least(self, layer: LayerSpec) -> int:
        """Fewest units that a layer may keep by `max_sparsity`, 0 if no pattern matches it."""
        known = self.settings.max_sparsity or {}
        limits = [most for pattern, most in known.items() if fnmatch.fnmatch(layer.name, pattern)]
        return math.ceil(layer.units * (1 - Fraction(str(min(limits, default=1)))))
