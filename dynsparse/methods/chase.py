"""Chase: RigL over all layers, while the channels of the smallest weights are starved to death."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, SparseLayer
from dynsparse.masks.bits import pack_bits, unpack_bits
from dynsparse.masks.channels import ChannelGroup, Channels
from dynsparse.masks.joint import joint_counts
from dynsparse.masks.selection import Cut, cuts_smallest
from dynsparse.masks.structure import FREE
from dynsparse.methods.base import Share, SomeShare
from dynsparse.methods.clock import Clock
from dynsparse.methods.exploration import Counts
from dynsparse.methods.rigl import Rigl, RiglSettings
from dynsparse.methods.starving import Need, starved
from dynsparse.schedules import Period, StepTable

_NO_EFFECT = {"channel_floor": 0.2, "channels_until": 0.8, "residual": False}
"""Settings that say nothing where no channel dies, with their defaults."""


class ChaseSettings(RiglSettings):
    """Chase (Yin et al. 2023): RigL over all layers; the channels of the smallest weights die for good."""

    name: Literal["chase"]  # type: ignore[assignment]
    period: Period = StepTable(((0, 1000),))
    """Steps between reallocations, by epoch."""
    fraction: SomeShare = 0.5
    """Fraction of the active units to move at the start. It falls to 0 along a cosine."""
    until: Share = 1.0
    """Fraction of training in which weights move."""
    scope: Literal["layer", "global"] = "global"
    """global: all layers compete by one threshold. layer: each keeps its number of active weights."""
    channel_sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """Fraction of the channels that may die which are dead in the end (S_c); 0: none dies."""
    channel_floor: Share = 0.2
    """Fraction of an even share of the living that each group of channels keeps at least (beta)."""
    channels_until: SomeShare = 0.8
    """Fraction of the run after which `channel_sparsity` is reached, by the cubic of gradual pruning."""
    residual: bool = False
    """Let channels die that several layers write, too, as where a residual connection adds ("prune skip")."""

    @model_validator(mode="after")
    def _channels_die(self) -> ChaseSettings:
        if not self.channel_sparsity:
            for name, usual in _NO_EFFECT.items():
                if getattr(self, name) != usual:
                    raise ValueError(
                        f"{name} has no effect with channel_sparsity 0, where no channel dies: leave it out"
                    )
        elif self.channels_until >= self.until:
            raise ValueError(
                f"channels_until is {self.channels_until:g}, and weights move until {self.until:g}: let the last "
                f"channels die before (channels_until), or let weights move longer (until)"
            )
        if self.density is not None and self.density.name == "alternating":
            raise ValueError(
                "density is alternating, and chase has a soft bound, which only falls: take cubic, sigmoid or steps"
            )
        return self

    def build(self) -> Chase:
        return Chase(self)


class Chase(Rigl):
    """Yin et al., "Dynamic sparsity is channel-level sparsity learner", NeurIPS 2023.

    Section 4 and the authors' code: as RigL with a long period (ITOP), by one threshold over all layers. A channel's
    score is its UMM, the mean |w| over all weights that write it, inactive ones counted as 0. By and by the lowest of
    all layers die, until S_c (1 - (1 - t / t_end)^3) of the channels are dead. Each layer keeps beta (1 - S_c) of its
    channels. A dead channel takes the rows of its writers and the columns of its readers with it: their weights fall
    first, as many grow elsewhere, and none ever grows there again. So the budget stays, in ever fewer channels.
    With a `density` that begins denser (their soft memory bound) each event drops down to the final density and grows
    up to that of the moment; from then on the fraction moves.

    Only channels all of whose writers and readers are sparse layers can die. Of a residual network these are the inner
    ones of the blocks, as in the authors' code; `residual` adds those that several layers write: of shortcuts, and of
    gates, as in squeeze-and-excitation. A channel stays where the budget would find no room without it, and where a
    layer would lose its last weight.

    Departures: channels die at the reallocations, not at a period of their own. The cubic ends with a last event at
    `channels_until` or after it. The fraction falls to 0, theirs to 0.005, and the soft bound goes by the curves that
    there are, not a cosine. With the scope `layer` budgets stay, theirs follow ERK anew. Where several layers write a
    channel, UMM is the mean over all of them.
    """

    settings: ChaseSettings

    def __init__(self, settings: ChaseSettings) -> None:
        super().__init__(settings)
        self.channels = Channels()
        self._stay = ""

    @property
    def wants_channels(self) -> bool:
        return self.settings.channel_sparsity > 0

    def check(self, layers: Sequence[LayerSpec], active_units: Mapping[str, int]) -> None:
        super().check(layers, active_units)
        settings = self.settings
        for layer in layers:
            if layer.structure != FREE:
                raise UserError(
                    f"method chase takes channels out, and sparsity.structure {layer.structure} keeps the number of "
                    f"each row: set the structure to free"
                )
            if layer.mask_dims == 1:
                raise UserError(
                    "method chase takes out inputs as well, and sparsity.granularity 1 moves whole filters: set it to "
                    "4, 3 or 2"
                )
        if settings.soft_drop:
            raise UserError(
                f"method.soft_drop is {settings.soft_drop}, and method chase drops dead channels first, by no draw: "
                f"leave it 0"
            )
        for kind, share in (settings._aim.sparsity if settings._aim else {}).items():
            if settings.density is not None and share and settings.density.start >= share:
                raise UserError(
                    f"method.density starts with {settings.density.start:g} zeros, and sparsity.{kind} is {share:g}: "
                    f"a soft bound lets layers hold more than in the end: lower density.start"
                )

    def check_length(self, end: Clock) -> None:
        """Raise UserError if no event may come once all channels are to be dead."""
        super().check_length(end)
        settings, period = self.settings, self._longest_period(end)
        stop = settings.stop_epoch / end.epochs
        last, words = min(
            (settings.until, "method.until"), (stop, "method.stop_epoch, as a share of the run"), key=lambda one: one[0]
        )
        if self.wants_channels and period > (last - settings.channels_until) * end.step:
            raise UserError(
                f"method.channels_until is {settings.channels_until:g}, and the {end.step:,} steps of the run may have "
                f"no reallocation between it and {words}, {last:g}: shorten method.period, {period:,}, "
                f"or let channels_until be earlier"
            )

    def couple(self, groups: Sequence[ChannelGroup], layers: Sequence[LayerSpec]) -> None:
        sparse = {layer.name for layer in layers}
        free = [group for group in groups if not group.obstacle]
        ours = [group for group in free if sparse.issuperset(group.layers)]
        taken = [group for group in ours if self.settings.residual or len(group.writers) == 1]
        if not taken:
            others = f" but {_size(ours):,} that several layers write" if ours else ""
            raise UserError(
                f"method chase lets channels die whose writers and readers are all sparse layers, and there are none"
                f"{others}: {'set residual to true' if ours else 'make more layers sparse'}, or channel_sparsity to 0"
            )
        self.channels = Channels(taken)
        apart = _size(ours) - _size(taken), _size(free) - _size(ours)
        reasons = "several layers write", "dense layers use"
        stay = "".join(f"; {n:,} that {reason} stay" for n, reason in zip(apart, reasons, strict=True) if n)
        self._stay = stay

    @property
    def notes(self) -> Sequence[str]:
        if not self.channels.count:
            return []
        first = sum(self.channels.first_sizes)
        return [f"chase: {self._goal(1):,} of {first:,} channels are to die by the end{self._stay}"]

    def _goal(self, progress: float) -> int:
        """Number of channels that are to be dead."""
        left = 1 - min(1.0, progress / self.settings.channels_until)
        return round(self.settings.channel_sparsity * sum(self.channels.first_sizes) * (1 - left**3))

    @property
    def _floors(self) -> list[int]:
        """Fewest living channels of each group."""
        share = (1 - Fraction(str(self.settings.channel_sparsity))) * Fraction(str(self.settings.channel_floor))
        return [max(1, math.floor(share * size)) for size in self.channels.first_sizes]

    @property
    def decision_bytes(self) -> int:
        return -(-self.channels.count // 8)

    def decide(self, clock: Clock, resting: Collection[str]) -> Tensor:
        """Choose the channels that die now: uint8 [decision_bytes], a bit each."""
        wanted = self._goal(clock.progress) - self.channels.lost if self.moves(clock) else 0
        layers = list(self.masks)
        units = [n // layer.spec.unit_size for n, layer in zip(self.budgets(layers, clock), layers, strict=True)]
        least = [self.least_units(layer.spec) if self.trades else 1 for layer in layers]
        still = sum(self._living(layer) for layer in layers if layer.name in resting)
        need = Need([1] * len(layers) if self.trades else units, self.moving_budget(self.masks, clock) + still, least)
        return pack_bits(starved(self.channels, layers, wanted, self._floors, need, resting))

    def _living(self, layer: SparseLayer) -> int:
        """Weights on the crossings of living rows and columns, active or not."""
        if not self.channels.touch(layer.spec):
            return layer.spec.weights
        rows, columns = (int((~lines).sum()) for lines in self.channels.dead_lines(layer.spec))
        return rows * columns * math.prod(layer.spec.shape[2:])

    def follow(self, decided: Tensor) -> None:
        self.channels.dead |= unpack_bits(decided, self.channels.count)

    def closed(self, layer: SparseLayer) -> Tensor | None:
        return self.channels.closed(layer.spec, layer.device)

    def drop_scores(self, layer: SparseLayer) -> Tensor:
        """Mean |w| of each unit, float [active units]; -1 where its channel is dead, so that it falls first."""
        scores, closed = super().drop_scores(layer), self.closed(layer)
        return scores if closed is None else scores.masked_fill_(closed[layer.active], -1)

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        dying = torch.stack([(layer < 0).count_nonzero() for layer in scores]).tolist()
        falling = self._falling(dying, clock)
        if not self.trades:
            return cuts_smallest(scores, [max(0, *both) for both in zip(dying, falling, strict=True)])
        moving = [layer.name not in self.resting for layer in self.masks]
        sizes = [layer.spec.unit_size for layer in self.masks]
        gone, wanted = (
            sum(n * size * moves for n, size, moves in zip(counts, sizes, moving, strict=True))
            for counts in (dying, falling)
        )
        spare = [layer.active_units - self.least_units(layer.spec) for layer in self.masks]
        most = [max(0, count) if moves else 0 for count, moves in zip(spare, moving, strict=True)]
        room = gone + sum(self._living(layer) for layer, moves in zip(self.masks, moving, strict=True) if moves)
        weights = max(gone, min(wanted, room - self.moving_budget(self.masks, clock)))
        return cuts_smallest(scores, joint_counts(scores, sizes, weights, dying, most))

    def _falling(self, dying: Sequence[int], clock: Clock) -> list[int]:
        """Units of each layer that are to fall with the dying: a fraction of the others, or all beyond the end's."""
        schedule, active = self.settings.density, [layer.active_units for layer in self.masks]
        if schedule is not None and not schedule.is_final(clock.progress, clock.whole_epochs):
            ends = self._way([layer.spec for layer in self.masks])
            return [count - last for count, (_, last) in zip(active, ends, strict=True)]
        share = Fraction(str(self.moved_share(clock)))
        return [gone + round(share * (count - gone)) for gone, count in zip(dying, active, strict=True)]

    def grown_units(self, now: Counts, after: Counts, clock: Clock) -> Counts | None:
        return None if self.settings.density is not None else super().grown_units(now, after, clock)

    def scalars(self) -> Mapping[str, float]:
        return {"channel_sparsity": self.channels.lost / max(1, sum(self.channels.first_sizes))}

    def state_dict(self) -> dict[str, Any]:
        """Return which channels are dead, at a bit each, and how many were taken out."""
        return dict(self.channels.state_dict())

    @property
    def shrink_obstacle(self) -> str:
        found = super().shrink_obstacle
        return found if self.settings.density is not None or self.settings.exploration is not None else ""

    def state_after_shrink(self, rows: Mapping[str, Tensor]) -> dict[str, Any]:
        return dict(self.channels.state_after(rows))

    def check_state(self, state: Mapping[str, Any], layers: Mapping[str, tuple[Sequence[int], int]]) -> None:
        if not all(isinstance(flags, Tensor) and flags.dtype == torch.uint8 for flags in state["dead"].values()):
            raise ValueError("dead is not the bits of groups of channels")
        if not all(type(count) is int and count >= 0 for count in state["gone"].values()):
            raise ValueError("gone is not the numbers of channels that were taken out")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.channels.load_state_dict(state)
        for layer in self.masks:
            if (closed := self.closed(layer)) is not None and bool(closed[layer.active].any()):
                raise ValueError(f"dead has channels of which {layer.name} has active weights")


def _size(groups: Sequence[ChannelGroup]) -> int:
    return sum(group.size for group in groups)
