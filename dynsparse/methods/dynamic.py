"""The base of methods that move weights while training: when, at what density, and from which first values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, MaskSet, SparseLayer
from dynsparse.masks.granularity import Kind
from dynsparse.masks.initial import initial_weights
from dynsparse.masks.joint import joint_counts
from dynsparse.masks.selection import Cut, cuts_fraction, cuts_smallest
from dynsparse.masks.structure import fitted
from dynsparse.methods.base import Aim, Method, MethodSettings, in_parts
from dynsparse.methods.clock import Clock, Schedule
from dynsparse.methods.exploration import Basis, Counts, Forecast, events_of, forecast, longest_period
from dynsparse.schedules import AnyDensity, Period, StepTable
from pipelines.common.settings import Count

Power = Annotated[int, Field(ge=0, le=64)]
Floor = Annotated[float, Field(ge=0, lt=1)]


class DynamicSettings(MethodSettings):
    """Base of the settings of methods that move weights while training."""

    period: Period = StepTable(((0, 1000),))
    """Steps between reallocations, by epoch."""
    stop_epoch: Count = 1000
    """Reallocate only before this epoch."""
    new_weights: Literal["zero", "initial"] = "zero"
    """First values of grown weights: 0, or a draw from the initial distribution (paper's `--big-new-weights`).

    It is that of the paper's networks and of torchvision's ResNets, by the layer's shape, whatever the network began
    with."""
    density: AnyDensity | None = None
    """Course of the density from the first step to the config's `sparsity`; null: it stays as it is."""
    soft_drop: Power = 0
    """Draw what falls by weights of 1 / score^power, without replacement; 0: the lowest scores fall."""
    soft_growth: Power = 0
    """Draw what grows by weights of score^power, without replacement; 0: the highest scores grow."""
    exploration: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Fraction of the sparse weights that are to be active at some time (R_s of ITOP). `period` is chosen by a forecast
    that reaches it: exact on average for growth at random; growth by scores explores less. null: `period` holds."""
    _aim: Aim | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _one_period(self) -> DynamicSettings:
        usual = type(self).model_fields["period"].default
        if self.exploration is not None and self.period != usual:
            raise ValueError(
                f"exploration is {self.exploration:g}, which chooses the period, and period is given too: leave one out"
            )
        return self

    def knowing(self, aim: Aim) -> DynamicSettings:
        """Return these settings, knowing the sparsity that the run is to end with."""
        found = self.model_copy()
        found._aim = aim
        return found

    def first_sparsity(self, sparsity: Mapping[Kind, float]) -> Mapping[Kind, float]:
        """Fraction of zeros at the first step: the density schedule's, in layers that are to be sparse."""
        if self.density is None:
            return sparsity
        return {kind: self.density.start if value else value for kind, value in sparsity.items()}


def is_set(settings: DynamicSettings, name: str) -> bool:
    """Whether an option is other than its default. A resolved config names all options, with their defaults."""
    return bool(getattr(settings, name) != type(settings).model_fields[name].default)


def refuse_draws_between_layers(settings: DynamicSettings, *names: str) -> None:
    """Raise ValueError for draws where layers compete by score: a draw takes scores relative to their layer's."""
    for name in names:
        if power := getattr(settings, name):
            raise ValueError(
                f"{name} is {power}, and all layers compete by their scores here, of which a draw knows those within a "
                f"layer alone: leave it 0"
            )


class ScopedSettings(DynamicSettings):
    """Settings of a rule that works in each layer, or by one threshold over all of them."""

    scope: Literal["layer", "global"] = "layer"
    """layer: each layer keeps its number of active weights. global: all layers compete by one threshold."""
    floor: Floor = 0.0
    """Fraction of its units that each layer keeps at least, whatever the scores; for the scope global."""

    @model_validator(mode="after")
    def _draws_within_layers(self) -> ScopedSettings:
        if self.scope == "global":
            refuse_draws_between_layers(self, "soft_drop", "soft_growth")
        return self

    @model_validator(mode="after")
    def _floor_is_of_use(self) -> ScopedSettings:
        if self.floor and self.scope != "global":
            raise ValueError(
                f"floor is {self.floor:g}, and with scope layer no layer loses weights to others: set scope to global"
            )
        return self


class Dynamic(Method):
    """Base of methods that move weights while training."""

    settings: DynamicSettings

    def __init__(self, settings: DynamicSettings) -> None:
        self.settings = settings
        self.soft_drop, self.soft_growth = settings.soft_drop, settings.soft_growth
        self._ends: Sequence[tuple[int, int]] | None = None
        self._active = 0

    @property
    def shrink_obstacle(self) -> str:
        """Words for why the method cannot go on with a network that has lost channels; empty: it can."""
        if self.settings.density is not None:
            return "takes each layer's budget from its size (method.density)"
        if self.settings.exploration is not None:
            return "takes its period from the layers' sizes (method.exploration)"
        return super().shrink_obstacle

    def is_due(self, clock: Clock) -> bool:
        """Whether to reallocate after this step: where weights `move`, and where the density changes."""
        return self.moves(clock) or self.changes_density(clock)

    def moves(self, clock: Clock) -> bool:
        """Whether the rule moves weights after this step. Default: every `period` steps before `stop_epoch`.

        Not after the run's last step: what grows then would never train (Mocanu et al. 2018, Algorithm 1).
        """
        return self._may_move(clock) and not clock.ends_run

    def _may_move(self, clock: Clock) -> bool:
        return not self.at_rest and clock.epoch < self.settings.stop_epoch and self._is_period(clock)

    def exchanges(self, clock: Clock) -> bool:
        """Whether the rule moves weights in this event: not where it rests and the density alone changes."""
        return self.moves(clock) or not self.changes_density(clock)

    def _is_period(self, clock: Clock) -> bool:
        return clock.step % self._period(clock) == 0

    def _period(self, clock: Clock) -> int:
        """Steps from one event to the next."""
        return int(self.settings.period.at(clock.epoch))

    def _longest_period(self, clock: Clock) -> int:
        """Steps from one event to the next at most, in any epoch."""
        return max(int(steps) for _, steps in self.settings.period.points)

    def changes_density(self, clock: Clock) -> bool:
        """Whether the density is another after this event: each period, or at the end of an epoch."""
        schedule = self.settings.density
        if schedule is None:
            return False
        now = schedule.share(clock.progress, clock.whole_epochs)
        if schedule.by_epochs:
            return clock.ends_epoch and now != schedule.share(clock.progress, clock.epoch)
        # The longest period: taken for later than it was, the event before would hide the last change.
        before = _progress_at(clock, self._longest_period(clock))
        return self._is_period(clock) and now != schedule.share(before, clock.epoch)

    @property
    def counts_epochs(self) -> bool:
        """Whether `stop_epoch` or a table over epochs is set, or the density goes by epochs."""
        stops = "stop_epoch" in self.settings.model_fields_set
        by_epochs = self.settings.density is not None and self.settings.density.by_epochs
        tables = any(isinstance(value, StepTable) and len(value.points) > 1 for _, value in self.settings)
        return stops or by_epochs or tables

    def is_settled(self, clock: Clock) -> bool:
        """Whether the density came to its final value in an event: only such epochs can be a run's best."""
        return self.settings.density is None or self._was_final(self.settings.density, clock)

    def _was_final(self, schedule: AnyDensity, clock: Clock) -> bool:
        """Whether the density was to have its final value at the latest event."""
        at = clock.progress if schedule.by_epochs else _progress_at(clock, self._since_event(clock))
        return schedule.is_final(at, clock.epoch)

    def _since_event(self, clock: Clock) -> int:
        """Steps since the latest event that may have changed the density; perhaps more where periods differ."""
        if self._is_period(clock):
            return 0
        back, longest = clock.step % self._period(clock), self._longest_period(clock)
        another = back > clock.epoch_steps and self._period(clock) != longest  # The event was in an epoch before.
        return clock.epoch_steps + longest if another else back

    def check(self, layers: Sequence[LayerSpec], active_units: Mapping[str, int]) -> None:
        """Raise UserError for draws that the rule has no scores for, and a density that has no end."""
        if self.soft_drop and not self.drops_by_count:
            raise UserError(
                f"method.soft_drop is {self.soft_drop}, and this method drops by a threshold, not a number: leave it 0"
            )
        if self.soft_growth and not self._scores_growth:
            raise UserError(
                f"method.soft_growth is {self.soft_growth}, and this method grows at random, by no score: leave it 0"
            )
        if self.settings.density is not None and self.settings._aim is None:
            raise UserError("method.density changes the sparsity, and no sparsity is given to end with: give one")

    def check_length(self, end: Clock) -> None:
        """Raise UserError if the run ends before the density has its final value."""
        if self._ends_early(end):
            raise UserError(
                f"method.density has not its final value when the run ends, after {end.step:,} steps, {end.epochs} "
                f"epochs: let it end earlier, or reallocate more often (method.period), or train longer"
            )

    def _ends_early(self, end: Clock) -> bool:
        """Whether the last event of a run comes before the density has its final value."""
        return self.settings.density is not None and not self._was_final(self.settings.density, end)

    def plan(
        self, layers: Sequence[LayerSpec], active_units: Mapping[str, int], schedule: Schedule, start: int = 0
    ) -> None:
        """Choose the period, if it is to reach an `exploration`, and forecast how much the run explores."""
        if not layers:
            return
        chosen = None
        if self.settings.exploration is not None:
            chosen = self._period_for(self.settings.exploration, layers, schedule, start)
            self.settings = self._every(chosen).settings
        active = [active_units[layer.name] for layer in layers]
        if all(count == layer.units for count, layer in zip(active, layers, strict=True)):
            return  # Every weight is active from the start.
        if (found := self._forecast(layers, active, schedule, start)) is not None:
            known = self.drops_by_count and not self.trades
            basis: Basis = "scores" if self._scores_growth else "random" if known else "unsure"
            self.forecast = Forecast(*found, basis, chosen)

    def _period_for(self, target: float, layers: Sequence[LayerSpec], schedule: Schedule, start: int) -> int:
        """Return a period with which a run explores so much.

        It goes by the sparsity, not by the masks of now: a resumed run must choose the same.
        """
        aim, density = self.settings._aim, self.settings.density
        if aim is None:
            raise UserError(
                "method.exploration chooses the period by the sparsity, which this method does not know: give "
                "sparsity=, and the method's settings in place of a Method"
            )
        first = list(aim.units(layers, None if density is None else density.start).values())
        _require_more(target, layers, first)
        end = schedule.clock(schedule.total_steps)
        self._every(1).check_length(end)

        def reached(period: int) -> float:
            found = self._every(period)._forecast(layers, first, schedule, start)
            if found is None:
                raise UserError(
                    f"method.exploration is {target:g}, and nobody can tell how much method {self.settings.name} will "
                    f"explore: leave it out, and say period"
                )
            return found[0]

        period = longest_period(reached, target, schedule.total_steps)
        while self._every(period)._ends_early(end):
            period -= 1  # At 1 the last event is in the last step.
        return period

    def _every(self, period: int) -> Dynamic:
        """Return the same method with another period."""
        method = type(self)(self.settings.model_copy(update={"period": StepTable(((0, period),))}))
        method._active = self._active
        return method

    def _forecast(
        self, layers: Sequence[LayerSpec], active: Sequence[int], schedule: Schedule, start: int
    ) -> tuple[float, int] | None:
        self._active = sum(active)
        return forecast(self, layers, active, events_of(self, schedule, start, self._stride))

    @property
    def _stride(self) -> int:
        """Number of steps of which all events are multiples."""
        period: StepTable | None = self.settings.period  # None: some methods have events at the end of epochs then.
        density = self.settings.density
        if period is None or (density is not None and density.by_epochs) or type(self).is_due is not Dynamic.is_due:
            return 1
        return math.gcd(*(int(steps) for _, steps in period.points))

    def moved_share(self, clock: Clock) -> float | None:
        """Fraction of its active units that each layer moves in this event. Default: None, nobody can tell beforehand.

        It makes the forecast of what a run explores. An own `drop_cuts` may use it too.
        """
        return None

    def grown_units(self, now: Counts, after: Counts, clock: Clock) -> Counts | None:
        """Units that each layer grows in this event, given those active before and after it; None: unknown."""
        share = self.moved_share(clock) if self.moves(clock) else 0.0
        return None if share is None else np.maximum(0, np.rint(share * now) + after - now)

    def _way(self, layers: Sequence[LayerSpec]) -> Sequence[tuple[int, int]]:
        """Active units of each layer at the start and at the end of a run whose density changes."""
        if self._ends is None:
            aim, schedule, specs = self.settings._aim, self.settings.density, layers
            assert aim is not None and schedule is not None
            first, last = aim.units(specs, schedule.start), aim.units(specs)
            self._ends = [(first[spec.name], last[spec.name]) for spec in specs]
        return self._ends

    def units_after(self, layers: Sequence[SparseLayer], clock: Clock) -> list[int]:
        """Units that each layer is to have after this event: as many as now, or as the density schedule says."""
        return self.units_at([layer.spec for layer in layers], [layer.active_units for layer in layers], clock)

    def units_at(self, layers: Sequence[LayerSpec], before: Sequence[int], clock: Clock) -> list[int]:
        """Units that each layer is to have after this event: as many as before, or as the density schedule says."""
        schedule = self.settings.density
        if schedule is None:
            return list(before)
        share = schedule.share(clock.progress, clock.whole_epochs)
        units = [round(first + (last - first) * share) for first, last in self._way(layers)]
        return [fitted(layer, count) for layer, count in zip(layers, units, strict=True)]

    def budgets(self, layers: Sequence[SparseLayer], clock: Clock) -> Sequence[int]:
        """Active weights of each layer after this event: as many as now, or as the density schedule says."""
        units = self.units_after(layers, clock)
        return [count * layer.spec.unit_size for count, layer in zip(units, layers, strict=True)]

    def begin(self, layer: SparseLayer, units: Tensor, generator: torch.Generator) -> Tensor | None:
        """First weights of grown units, as `new_weights` says: None for 0, or a draw."""
        if self.settings.new_weights == "zero":
            return None
        return initial_weights(layer.spec, units.numel(), generator)


class Scoped(Dynamic):
    """Base of rules that work in each layer, or by one threshold over all of them."""

    settings: ScopedSettings
    sees_scores = (*Dynamic.sees_scores, "cuts_of")

    @property
    def trades(self) -> bool:
        """Whether all layers compete."""
        return self.settings.scope == "global"

    def check(self, layers: Sequence[LayerSpec], active_units: Mapping[str, int]) -> None:
        """Raise UserError for a floor that is above what layers have."""
        super().check(layers, active_units)
        have = sum(active_units[layer.name] * layer.unit_size for layer in layers)
        need = sum(self.least_units(layer) * layer.unit_size for layer in layers)
        if self.settings._aim is not None:
            units = self.settings._aim.units(layers)
            have = min(have, sum(units[layer.name] * layer.unit_size for layer in layers))
        if need > have:
            raise UserError(
                f"method.floor is {self.settings.floor:g}: all layers together keep {need:,} weights at least, and the "
                f"sparsity leaves {have:,}: lower the floor"
            )

    def least_units(self, spec: LayerSpec) -> int:
        """Fewest active units that a layer keeps: the floor's."""
        return max(1, math.ceil(Fraction(str(self.settings.floor)) * spec.units))

    def prepare(self, masks: MaskSet) -> None:
        """Learn the layers."""
        self.masks = masks

    @in_parts
    def cuts_of(self, scores: Sequence[Tensor], fraction: float) -> Sequence[Cut]:
        """Return cuts that take this fraction of the lowest scores, in each layer or of all together."""
        if self.settings.scope == "layer":
            return cuts_fraction(scores, fraction)
        sizes = [layer.spec.unit_size for layer in self.masks]
        moving = [layer for layer in self.masks if layer.name not in self.resting]
        most = [
            max(0, layer.active_units - self.least_units(layer.spec)) if layer.name not in self.resting else 0
            for layer in self.masks
        ]
        weights = round(Fraction(str(fraction)) * sum(layer.active_weights for layer in moving))
        return cuts_smallest(scores, joint_counts(scores, sizes, weights, [0] * len(most), most))


def _progress_at(clock: Clock, back: int) -> float:
    """Return the fraction of the run that was done so many steps before a clock, or earlier, never later.

    Exact but for steps in an epoch before, where epochs differ in length: then nothing was done.
    """
    if clock.before is None:
        return clock.progress * max(0.0, 1 - back / clock.step)
    if back > clock.epoch_steps:
        return 0.0
    return (clock.epoch + (clock.epoch_steps - back) / clock.steps_per_epoch) / clock.epochs


def _require_more(target: float, layers: Sequence[LayerSpec], active: Sequence[int]) -> None:
    """Raise UserError for an exploration that the run begins with: the period would be as long as the run."""
    begun = sum(count * layer.unit_size for count, layer in zip(active, layers, strict=True))
    share = begun / sum(layer.weights for layer in layers)
    if share >= target:
        raise UserError(
            f"method.exploration is {target:g}, and the run begins with {share:.3g} of the sparse weights active, so "
            f"that no period follows from it: {'' if share == 1 else 'ask for more, or '}leave it out, and say period"
        )
