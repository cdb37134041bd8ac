"""MEST: drop by magnitude and gradient, grow at random, within a memory bound that may be soft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, MaskSet, SparseLayer
from dynsparse.masks.selection import Cut, cuts_fraction, cuts_smallest
from dynsparse.methods.base import LayerChange, SomeShare
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import Dynamic, DynamicSettings
from dynsparse.schedules import Places, steps_made

_FRACTION, _LOWER_AT = 0.2, [0.5625, 0.75]


class MestSettings(DynamicSettings):
    """MEST (Yuan et al. 2021): drop by magnitude and gradient, grow at random; a memory bound that may be soft."""

    name: Literal["mest"]
    fraction: SomeShare = _FRACTION
    """Fraction of each layer's active units to move at the start. It falls in equal steps to 0."""
    lower_at: Places = _LOWER_AT
    """Fractions of the run at which `fraction` makes a step; nothing moves after the last."""
    gradient_weight: Annotated[float, Field(ge=0)] = 0.01
    """Weight of |gradient| beside |weight| in the score for dropping."""
    soft_bound: bool = False
    """Drop down to the final density, then grow up to that of the moment, in place of `fraction`. Needs `density`."""

    @model_validator(mode="after")
    def _bound_is_known(self) -> MestSettings:
        if self.soft_bound and self.density is None:
            raise ValueError(
                "soft_bound lets layers exceed their final density, and no density says by how much: give one, such as "
                "density: {name: steps, start: 0.85}"
            )
        if self.soft_bound and (self.fraction, self.lower_at) != (_FRACTION, _LOWER_AT):
            raise ValueError(
                "fraction and lower_at have no effect with soft_bound, which drops down to the final density: leave "
                "them out"
            )
        return self

    def build(self) -> Mest:
        return Mest(self)


class Mest(Dynamic):
    """Yuan et al., "MEST: accurate and fast memory-economic sparse training framework on the edge", NeurIPS 2021.

    EM (elastic mutation): each layer drops a fraction of its active weights, those of the lowest |w| + lambda |dL/dw|,
    and grows as many at random. The fraction falls in steps to 0. EM&S (`soft_bound`, the soft memory bound): each
    layer drops to its final density and grows to a higher one. That is lowered in steps until both are the same, and
    nothing moves any more.

    The fractions and steps are those of the authors' scripts for CIFAR: EM drops to 92, 91 and 90 % zeros, EM&S grows
    to 85, 87.5 and 90 %, with steps at epochs 90 and 120 of 160. Their period is five epochs. Their lambda could not be
    found: the code has 0 unless told, Zhang et al. 2025 take 0.01.

    Departures: the gradient is that of the step that ends with the event. After a step that a loss scaler skipped it
    counts as 0. What is dropped in an event does not grow in it. Training examples are not removed.

    It reads gradients of active weights only, and copies those of a whole layer in steps with an event. It keeps no
    state between steps.
    """

    settings: MestSettings

    def check(self, layers: Sequence[LayerSpec], active_units: Mapping[str, int]) -> None:
        super().check(layers, active_units)
        density, aim = self.settings.density, self.settings._aim
        if not self.settings.soft_bound or density is None or aim is None:
            return
        for kind, share in aim.sparsity.items():
            if share and density.start >= share:
                raise UserError(
                    f"method.density starts with {density.start:g} zeros, and sparsity.{kind} is {share:g}: a soft "
                    f"bound lets layers hold more than in the end: lower density.start"
                )

    def prepare(self, masks: MaskSet) -> None:
        self.masks = masks
        self._gradients: dict[str, Tensor] = {}

    def moves(self, clock: Clock) -> bool:
        density = self.settings.density
        if self.settings.soft_bound and density is not None:
            return super().moves(clock) and not density.is_final(clock.progress, clock.whole_epochs)
        return super().moves(clock) and self._fraction(clock) > 0

    def _fraction(self, clock: Clock) -> float:
        return self.settings.fraction * (1 - steps_made(self.settings.lower_at, clock.progress))

    def moved_share(self, clock: Clock) -> float | None:
        return None if self.settings.soft_bound else self._fraction(clock)

    @property
    def observes(self) -> bool:
        """Whether whole gradients are recorded: no, only those of active weights, of the very step."""
        return False

    def observes_at(self, clock: Clock) -> bool:
        return self.settings.gradient_weight > 0 and self.is_due(clock)

    def observe(self, layer: SparseLayer, gradient: Tensor) -> None:
        self._gradients[layer.name] = layer.gather(gradient).abs_()

    def drop_scores(self, layer: SparseLayer) -> Tensor:
        """Mean |w| + lambda |gradient| over each unit, float [active units]."""
        values = layer.gather(layer.weight).abs_()
        if layer.name in self._gradients:
            values.add_(self._gradients[layer.name], alpha=self.settings.gradient_weight)
        return values.view(-1) if layer.spec.unit_size == 1 else values.mean(1)

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        if not self.settings.soft_bound:
            return cuts_fraction(scores, self._fraction(clock))
        final = [last for _, last in self._way([layer.spec for layer in self.masks])]
        counts = [max(0, layer.active_units - last) for layer, last in zip(self.masks, final, strict=True)]
        return cuts_smallest(scores, counts)

    def after(self, layers: Sequence[LayerChange]) -> None:
        self._gradients.clear()
