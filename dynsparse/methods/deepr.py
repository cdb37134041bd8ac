"""DeepR: after every step, weights that cross zero are dropped and others grow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.bits import Bits, pack_bits, unpack_bits
from dynsparse.masks.selection import Cut, cuts_below
from dynsparse.masks.tensors import joined, on_device
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import Dynamic, DynamicSettings
from dynsparse.schedules import NotNegative, Period, StepTable
from dynsparse.seeds import random_bits, random_normal, seed_for

AT_ONCE = 1 << 20
"""Weights that are worked on at once, at 60 to 80 bytes each: 80 MiB at most, whatever the network."""
Part = tuple[SparseLayer, Tensor]
"""Layer, and some of its active units: int64, rising."""


class DeepRSettings(DynamicSettings):
    """DeepR (Bellec et al. 2018): noisy weights with a sign for life; set `train.penalty.l1` for its pull to 0."""

    name: Literal["deepr"]
    period: Period = StepTable(((0, 1),))
    """Steps between reallocations, by epoch. DeepR's own: 1."""
    eta: Annotated[float, Field(ge=0)] = 0.001
    """Rate of the noise (paper's code: `--DeepR_eta`)."""
    temperature: NotNegative = StepTable(((0, 1e-5),))
    """Temperature T of the noise, by epoch."""

    def build(self) -> DeepR:
        return DeepR(self)


class DeepR(Dynamic):
    """Bellec et al., "Deep rewiring: training very sparse deep networks", ICLR 2018, Algorithm 1.

    After each optimizer step noise of std sqrt(2 eta T) is added to the active weights. A unit is dropped when most of
    its weights have crossed from the sign that they were born with. As many units grow in the same layer, at 0 and with
    random signs.

    Departures: eta is a setting of its own, not the learning rate, as in the paper's code. Noise is the sum of twelve
    uniform numbers, nearly normal and the same on every device (`random_normal`). After `stop_epoch` weights may change
    sign, and there is no more noise.
    """

    settings: DeepRSettings
    drops_by_count = False
    every_step = True

    def moves(self, clock: Clock) -> bool:
        """Whether weights that have crossed 0 are replaced: also after the last step, for they are in no network."""
        return self._may_move(clock)

    def prepare(self, masks: MaskSet) -> None:
        self.masks = masks
        #: Numbers of the weights that were born negative, by layer. Only those of active weights mean something.
        self.negative = {layer.name: Bits(layer.spec.weights, layer.weight.device) for layer in masks}
        for layer in masks:
            rows = max(1, AT_ONCE * len(layer.weight) // layer.spec.weights)
            at = 0
            for part in layer.weight.detach().split(rows):  # In logical order, whatever the memory format.
                self.negative[layer.name].set(at, part.reshape(-1) < 0)
                at += part.numel()

    @torch.no_grad()
    def after_step(self, masks: MaskSet, clock: Clock, seed: int) -> None:
        std = math.sqrt(2 * self.settings.eta * self.settings.temperature.at(clock.epoch))
        if std == 0 or clock.epoch >= self.settings.stop_epoch:
            return
        moving = [layer for layer in masks if layer.parameter.requires_grad]  # One frozen after the start stays.
        for parts in _groups(moving):
            seeds = [seed_for(seed, "noise", clock.step, layer.name) for layer, _ in parts]
            for (layer, units), noise in zip(parts, _noise(parts, seeds), strict=True):
                values = layer.at(layer.weight, units).view(-1)
                layer.put_(layer.weight, units, values.add_(noise, alpha=std))

    def born_negative(self, layer: SparseLayer) -> Tensor:
        """Bool [active units, unit size]: True for active weights that stay below 0."""
        return joined([self._born_negative(layer, units) for units in layer.active_pieces(AT_ONCE)])

    def _born_negative(self, layer: SparseLayer, units: Tensor) -> Tensor:
        return self.negative[layer.name].at(_weights(layer, units))

    def drop_scores(self, layer: SparseLayer) -> Tensor:
        """Negated fraction of a unit's weights that have crossed 0, float [active units]."""
        return joined([self._drop_scores(layer, units) for units in layer.active_pieces(AT_ONCE)])

    def _drop_scores(self, layer: SparseLayer, units: Tensor) -> Tensor:
        values = layer.at(layer.weight, units)
        crossed = torch.where(self._born_negative(layer, units), values > 0, values < 0).float()
        return -torch.where(values.isnan(), values.float(), crossed).mean(1)

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        return cuts_below(scores, -0.5)

    def begin(self, layer: SparseLayer, units: Tensor, generator: torch.Generator) -> Tensor | None:
        values = super().begin(layer, units, generator)
        seed = generator.initial_seed()
        size = layer.spec.unit_size
        at = 0
        for part in units.split(max(1, AT_ONCE // size)):
            self.negative[layer.name].put(_weights(layer, part).view(-1), _signs(seed, at, part.numel() * size, part))
            at += part.numel() * size
        if values is None:
            return None
        negative = _signs(seed, 0, values.numel(), values)
        return torch.where(negative.view_as(values), -values.abs(), values.abs())

    def state_dict(self) -> dict[str, Any]:
        """One bit for each active weight: whether it was born negative."""
        return {"negative": {layer.name: pack_bits(self.born_negative(layer).view(-1)) for layer in self.masks}}

    def check_state(self, state: Mapping[str, Any], layers: Mapping[str, tuple[Sequence[int], int]]) -> None:
        for name, (_, active) in layers.items():
            bits = state["negative"][name]
            if not isinstance(bits, Tensor) or (bits.dtype, bits.shape) != (torch.uint8, (-(-active // 8),)):
                raise ValueError(f"negative.{name} is not a bit for each active weight")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for layer in self.masks:
            bits = unpack_bits(state["negative"][layer.name], layer.active_weights)
            at = 0
            for units in layer.active_pieces(AT_ONCE):
                numbers = _weights(layer, units).view(-1)
                self.negative[layer.name].put(numbers, bits[at : at + len(numbers)].to(layer.weight.device))
                at += len(numbers)


def _groups(layers: Sequence[SparseLayer]) -> Iterator[list[Part]]:
    """Divide the active weights of layers into groups of at most AT_ONCE, or of one unit. Small layers go together."""
    group: list[Part] = []
    held = 0
    for layer in layers:
        for units in layer.active_pieces(AT_ONCE):
            more = units.numel() * layer.spec.unit_size
            if group and held + more > AT_ONCE:
                yield group
                group, held = [], 0
            group.append((layer, units))
            held += more
    if group:
        yield group


def _noise(parts: Sequence[Part], seeds: Sequence[int]) -> Sequence[Tensor]:
    """Draw normal numbers for the weights of each part by its seed: float32 [weights]. Few kernels for all parts."""
    places = [_weights(layer, units).view(-1) for layer, units in parts]
    if len(parts) == 1:
        return [random_normal(seeds[0], places[0])]
    counts, total = [len(one) for one in places], sum(map(len, places))
    device = places[0].device
    of_each = on_device(seeds, device).repeat_interleave(on_device(counts, device), output_size=total)
    return list(torch.split(random_normal(of_each, joined(places)), counts))


def _signs(seed: int, first: int, count: int, like: Tensor) -> Tensor:
    """Toss coins number `first` to `first` + `count`, bool [count], on the device of `like`: the same on every one."""
    return random_bits(seed, torch.arange(first, first + count, device=like.device)) % 2 == 0


def _weights(layer: SparseLayer, units: Tensor) -> Tensor:
    """Numbers of the units' weights in the layer, int64 [units, unit size], in logical order."""
    size = layer.spec.unit_size
    return units[:, None] * size + torch.arange(size, device=units.device)
