"""Dynamic sparse reparameterization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec
from dynsparse.masks.selection import Cut, cuts_below
from dynsparse.methods.base import Dynamic, DynamicSettings, LayerChange, by_kept
from dynsparse.methods.clock import Clock
from pipelines.common.settings import AtLeast1


class DsrSettings(DynamicSettings):
    """Dynamic sparse reparameterization (Mostafa & Wang 2019): a global threshold, growth across layers."""

    name: Literal["dsr"]
    scaling: bool = True
    """Layers that keep more weights get more. If false, each layer gets back as many as it lost."""
    initial_threshold: Annotated[float, Field(gt=0)] = 1e-3
    """Magnitude under which a unit is dropped at the start. It adapts."""
    target_moves: AtLeast1 = 600
    """Units to move in one reallocation (weights, where granularity is 4). The threshold adapts to come near it
    (paper: N_p)."""

    def build(self) -> Dsr:
        return Dsr(self)


class Dsr(Dynamic):
    """Dynamic sparse reparameterization (Mostafa & Wang, ICML 2019, Algorithm 1).

    Paper: "Parameter efficient training of deep convolutional neural networks by dynamic sparse reparameterization".

    Units with mean |w| < H are dropped in all layers. Layer l regrows in proportion to R_l, the weights that it keeps.
    H doubles or halves when the number dropped, K, is below 0.9 or above 1.1 times N_p. K and N_p count units, as in
    the paper's experiments with kernel slices. R_l and the weights to share out are counted in weights, so that units
    of different size trade without loss.

    Departure: N_p is capped at the number of units that can move: free positions, and all but one unit a layer.
    Otherwise H would grow without bound in a nearly dense network.
    """

    settings: DsrSettings

    def __init__(self, settings: DsrSettings) -> None:
        super().__init__(settings)
        self.threshold = settings.initial_threshold

    @property
    def trades(self) -> bool:
        return self.settings.scaling

    def check(self, layers: Sequence[LayerSpec], active_units: Mapping[str, int]) -> None:
        active = sum(active_units[layer.name] for layer in layers)
        if layers and self.settings.target_moves > active:
            raise UserError(
                f"method.target_moves is {self.settings.target_moves:,}; the network has {active:,} active units in "
                f"all: take a tenth of that or less"
            )

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        return cuts_below(scores, self.threshold)

    def shares(self, layers: Sequence[LayerChange]) -> Sequence[float | Fraction]:
        return by_kept(layers) if self.settings.scaling else super().shares(layers)

    def after(self, layers: Sequence[LayerChange]) -> None:
        dropped = sum(layer.dropped for layer in layers)
        free = sum(layer.room for layer in layers)
        droppable = sum(layer.active - 1 for layer in layers)
        if not self.trades:
            droppable = sum(min(layer.room, layer.active - 1) for layer in layers)
        target = min(self.settings.target_moves, free, droppable)
        if dropped > 1.1 * target:
            self.threshold /= 2
        elif dropped < 0.9 * target:
            self.threshold *= 2

    def scalars(self) -> Mapping[str, float]:
        return {"threshold": self.threshold}

    def state_dict(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

    def check_state(self, state: Mapping[str, Any], layers: Mapping[str, tuple[Sequence[int], int]]) -> None:
        threshold = state["threshold"]
        if not isinstance(threshold, float) or not 0 <= threshold < float("inf"):
            raise ValueError("threshold is not a positive number")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.threshold = state["threshold"]
