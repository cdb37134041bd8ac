"""DeepR: after every step, weights that cross zero are dropped and others grow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.bits import Bits, pack_bits, unpack_bits
from dynsparse.masks.selection import Cut, cuts_below
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import Dynamic, DynamicSettings
from dynsparse.schedules import NotNegative, Period, StepTable
from dynsparse.seeds import random_bits, random_normal, seed_for


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

    def prepare(self, masks: MaskSet) -> None:
        self.masks = masks
        #: Numbers of the weights that were born negative, by layer. Only those of active weights mean something.
        self.negative = {layer.name: Bits(layer.spec.weights, layer.weight.device) for layer in masks}
        for layer in masks:
            self.negative[layer.name].set(0, layer.weight.detach().reshape(-1) < 0)

    @torch.no_grad()
    def after_step(self, masks: MaskSet, clock: Clock, seed: int) -> None:
        std = math.sqrt(2 * self.settings.eta * self.settings.temperature.at(clock.epoch))
        if std == 0 or clock.epoch >= self.settings.stop_epoch:
            return
        for layer in masks:
            if not layer.weight.requires_grad:  # Frozen after the start: it stays as it is.
                continue
            values = layer.gather(layer.weight)
            noise = random_normal(seed_for(seed, "noise", clock.step, layer.name), _weights(layer, layer.active))
            layer.scatter_(layer.weight, values.add_(noise, alpha=std))

    def born_negative(self, layer: SparseLayer) -> Tensor:
        """Bool [active units, unit size]: True for active weights that stay below 0."""
        return self.negative[layer.name].at(_weights(layer, layer.active))

    def drop_scores(self, layer: SparseLayer) -> Tensor:
        """Negated fraction of a unit's weights that have crossed 0, float [active units]."""
        values = layer.gather(layer.weight)
        return -torch.where(self.born_negative(layer), values > 0, values < 0).float().mean(1)

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        return cuts_below(scores, -0.5)

    def begin(self, layer: SparseLayer, units: Tensor, generator: torch.Generator) -> Tensor | None:
        values = super().begin(layer, units, generator)
        seed = generator.initial_seed()
        self.negative[layer.name].put(_weights(layer, units).view(-1), _signs(seed, units, layer.spec.unit_size))
        if values is None:
            return None
        negative = _signs(seed, units.new_empty(units.shape, device="cpu"), layer.spec.unit_size)
        return torch.where(negative.view_as(values), -values.abs(), values.abs())

    def state_dict(self) -> dict[str, Any]:
        """One bit for each active weight: whether it was born negative."""
        born = {layer.name: self.born_negative(layer) for layer in self.masks}
        return {"negative": {name: pack_bits(bits.view(-1)) for name, bits in born.items()}}

    def check_state(self, state: Mapping[str, Any], layers: Mapping[str, tuple[Sequence[int], int]]) -> None:
        for name, (_, active) in layers.items():
            bits = state["negative"][name]
            if not isinstance(bits, Tensor) or (bits.dtype, bits.shape) != (torch.uint8, (-(-active // 8),)):
                raise ValueError(f"negative.{name} is not a bit for each active weight")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for layer in self.masks:
            bits = unpack_bits(state["negative"][layer.name], layer.active_weights)
            self.negative[layer.name].put(_weights(layer, layer.active).view(-1), bits.to(layer.weight.device))


def _signs(seed: int, units: Tensor, size: int) -> Tensor:
    """Toss coins, bool [units x size]. They are the same on every device, so that no copy is needed."""
    return random_bits(seed, torch.arange(units.numel() * size, device=units.device)) % 2 == 0


def _weights(layer: SparseLayer, units: Tensor) -> Tensor:
    """Numbers of the units' weights in the layer, int64 [units, unit size], in logical order."""
    size = layer.spec.unit_size
    return units[:, None] * size + torch.arange(size, device=units.device)
