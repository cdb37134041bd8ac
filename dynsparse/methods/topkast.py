"""Top-KAST: the largest weights are active, and the next largest train in reserve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, SparseLayer
from dynsparse.methods.base import SomeShare
from dynsparse.methods.dynamic import is_set
from dynsparse.methods.reserved import Reserved, ReservedSettings
from dynsparse.schedules import Period, StepTable


class TopkastSettings(ReservedSettings):
    """Top-KAST (Jayakumar et al. 2020): the largest weights of all are active, the next largest train in reserve."""

    name: Literal["topkast"]
    period: Period = StepTable(((0, 100),))
    """Steps between choices of the active weights and of the reserve, by epoch."""
    reserve: SomeShare = 0.1
    """Fraction of each layer's weights that train beside the active ones, at most as many as are inactive."""
    exploration_loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    """Adds c (1 / density - 1) w to the gradient of a weight w in reserve: the paper's L2 loss, with weight decay c."""

    def build(self) -> Topkast:
        return Topkast(self)


class Topkast(Reserved):
    """Jayakumar, Pascanu, Rae, Osindero & Elsen, "Top-KAST: top-k always sparse training", NeurIPS 2020.

    The forward pass uses the set A, the fraction D of each layer that is largest by magnitude. The larger set B, the
    fraction D + M, is updated, with gradients of a network in which only A is there. D is the density, M is `reserve`.
    Both sets are chosen anew every `period` steps. An L2 loss on B without A is larger than on A by the factor 1 / D,
    so that a weight of the reserve must be of use to become active.

    Here A is the mask. Weights of B without A, and the values of all others, lie beside it (`masks.reserve`). With
    weight decay c under SGD the losses are the paper's: `exploration_loss` c adds c (1 / D - 1) w to gradients of the
    reserve, and the optimizer's decay adds c w to those of A and of the reserve.

    Departures: the optimizer's own weight decay takes the place of the loss on A. First masks are as
    `sparsity.initial` says, at random by default. They are not the largest initial weights. The gradients of the
    reserve are not clipped. After `stop_epoch` both sets stay, and the reserve no longer trains. Units of several
    weights count with their mean. The paper's coefficient and period could not be read. The authors of
    another implementation report that it chooses the sets anew in every step, that every 100th is as accurate, and that
    it trains by SGD without momentum. Their own coefficient is 1e-4, the default here.

    It reads whole gradients in every step before `stop_epoch`: `distributed.gradients: active` saves nothing until
    then. Memory: 4 bytes a weight for the values, and as much for the copy of the gradient in a step. Each weight of
    the reserve has the optimizer's state, 4 bytes with momentum and 8 with Adam. Checkpoints hold the values of all
    weights. An event sorts the weights of each layer.
    """

    settings: TopkastSettings

    def __init__(self, settings: TopkastSettings) -> None:
        super().__init__(settings)
        self.share = settings.reserve

    def check(self, layers: Sequence[LayerSpec], active_units: Mapping[str, int]) -> None:
        super().check(layers, active_units)
        active = active_units if self.settings._aim is None else self.settings._aim.units(layers)
        free = [1 - active[layer.name] / layer.units for layer in layers]
        if free and max(free) < self.settings.reserve - 1e-9 and is_set(self.settings, "reserve"):
            raise UserError(
                f"method.reserve is {self.settings.reserve:g}, and no layer has more than {max(free):.3g} of its "
                f"weights inactive: lower it to that"
            )

    def pull(self, layer: SparseLayer) -> float:
        return self.settings.exploration_loss * (1 / (1 - layer.sparsity) - 1)
