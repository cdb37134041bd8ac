"""Choice of the channels that die: those of the smallest weights, as far as the layers can spare them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynsparse.masks import SparseLayer
from dynsparse.masks.channels import ChannelGroup, Channels


@dataclass(frozen=True)
class Need:
    """Numbers of units that must be left when channels have died."""

    in_layer: Sequence[int]
    """Units of each layer that must be able to be active: its budget, or 1 where layers trade."""
    together: int
    """Weights of all layers that must be able to be active."""
    active: Sequence[int]
    """Units of each layer that are active now and stay so."""


@dataclass(frozen=True)
class _Left:
    """Part of a layer whose channels live: rows, columns, units where both cross, and active units at least."""

    rows: int
    columns: int
    within: int
    active: int

    @property
    def room(self) -> int:
        return self.rows * self.columns * self.within


@dataclass(frozen=True)
class _Cost:
    """Loss of a layer with the death of each channel of a group: lines, and active units on them."""

    layer: int
    is_row: bool
    lines: Sequence[int]
    active: Sequence[int]


def starved(
    channels: Channels,
    layers: Sequence[SparseLayer],
    wanted: int,
    floors: Sequence[int],
    need: Need,
    resting: Collection[str] = (),
) -> Tensor:
    """Choose up to `wanted` living channels that die now: bool [channels], on the CPU.

    The lowest mean |weight| over all that write a channel, inactive ones counted as 0, goes first (UMM); ties break by
    number. A channel stays where its group would keep fewer than its part of `floors`, or a layer less than it needs,
    or where one of its layers is `resting`. A weight that two dying channels share counts for both.
    """
    if wanted <= 0:
        return torch.zeros_like(channels.dead)
    ledger = _Ledger.of(channels, layers, need)
    scores = _magnitudes(channels, layers, resting).masked_fill(channels.dead, torch.inf)
    places = [(g, c) for g, group in enumerate(channels.groups) for c in range(group.size)]
    spare = [
        int(dead.numel() - dead.count_nonzero()) - floor
        for dead, floor in zip(channels.by_group(channels.dead), floors, strict=True)
    ]
    dying = torch.zeros_like(channels.dead)
    for number in scores.argsort(stable=True)[: int(scores.isfinite().sum())].tolist():
        group, channel = places[number]
        if wanted and spare[group] > 0 and ledger.take(group, channel):
            dying[number], wanted, spare[group] = True, wanted - 1, spare[group] - 1
    return dying


def _magnitudes(channels: Channels, layers: Sequence[SparseLayer], resting: Collection[str]) -> Tensor:
    """Mean |weight| over the writers of each channel: float64 [channels] on the CPU, inf where a layer rests."""
    writing = {side.layer for group in channels.groups for side in group.writers}
    writers = [layer for layer in layers if layer.name in writing]
    sums = _on_the_host([layer.weight.detach().abs().flatten(1).sum(1, dtype=torch.float64) for layer in writers])
    rows = {layer.name: (one, layer.spec.weights // one.numel()) for layer, one in zip(writers, sums, strict=True)}
    found = []
    for group in channels.groups:
        total, weights = torch.zeros(2, group.size, dtype=torch.float64)
        for side in group.writers:
            of_row, length = rows[side.layer]
            total.index_add_(0, side.channels, of_row[side.places])
            weights.index_add_(0, side.channels, torch.full_like(of_row[side.places], length))
        rests = any(name in resting for name in group.layers)
        found.append(torch.full_like(total, torch.inf) if rests else total / weights)
    return torch.cat(found)


def _on_the_host(values: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors of one dimension to the CPU, all in one."""
    together = torch.cat(list(values)).cpu()
    return list(together.split([one.numel() for one in values]))


@dataclass
class _Ledger:
    """Account of what is left of the layers, as one channel dies after the other."""

    left: list[_Left]
    sizes: Sequence[int]
    need: Need
    costs: Sequence[Sequence[_Cost]]

    @classmethod
    def of(cls, channels: Channels, layers: Sequence[SparseLayer], need: Need) -> _Ledger:
        """Count the living rows and columns of all layers, and what is active on each."""
        lines = _on_the_host([one for layer in layers for one in _active_lines(layer)])
        counts = list(zip(lines[::2], lines[1::2], strict=True))
        left = [_left(channels, layer) for layer in layers]
        numbers = {layer.name: number for number, layer in enumerate(layers)}
        costs = [list(_costs(group, numbers, counts)) for group in channels.groups]
        return cls(left, [layer.spec.unit_size for layer in layers], need, costs)

    def take(self, group: int, channel: int) -> bool:
        """Let a channel die, if the layers can spare it. Returns whether they can."""
        after = list(self.left)
        for cost in self.costs[group]:
            one, lines = after[cost.layer], cost.lines[channel]
            after[cost.layer] = replace(
                one,
                rows=one.rows - lines * cost.is_row,
                columns=one.columns - lines * (not cost.is_row),
                active=one.active - cost.active[channel],
            )
        if not self._suffices(after, [cost.layer for cost in self.costs[group]]):
            return False
        self.left = after
        return True

    def _suffices(self, after: Sequence[_Left], changed: Sequence[int]) -> bool:
        need = self.need
        if any(after[i].room < need.in_layer[i] or after[i].active < need.active[i] for i in changed):
            return False
        return sum(one.room * size for one, size in zip(after, self.sizes, strict=True)) >= need.together


def _left(channels: Channels, layer: SparseLayer) -> _Left:
    rows, columns = channels.dead_lines(layer.spec)
    within = layer.spec.units // (rows.numel() * columns.numel())
    return _Left(int((~rows).sum()), int((~columns).sum()), within, layer.active_units)


def _active_lines(layer: SparseLayer) -> tuple[Tensor, Tensor]:
    """Count the active units on each row and on each column of a layer: int64 [rows], int64 [columns]."""
    active = (~layer.inactive).reshape(*layer.spec.shape[:2], -1).sum(2)
    return active.sum(1), active.sum(0)


def _costs(group: ChannelGroup, numbers: Mapping[str, int], counts: Sequence[tuple[Tensor, Tensor]]) -> Iterator[_Cost]:
    """Yield the losses of each layer that a group touches. `counts`: active units on its rows, on its columns."""
    for is_row, sides in ((True, group.writers), (False, group.readers)):
        for side in sides:
            number = numbers[side.layer]
            lines = torch.bincount(side.channels, minlength=group.size)
            on_lines = counts[number][0 if is_row else 1][side.places]
            active = torch.zeros(group.size, dtype=torch.int64).index_add_(0, side.channels, on_lines)
            yield _Cost(number, is_row, lines.tolist(), active.tolist())
