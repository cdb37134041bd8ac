"""Dynamic sparse reparameterization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec
from dynsparse.masks.selection import Cut, cuts_below
from dynsparse.methods.base import LayerChange, by_kept, in_parts
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import Dynamic, DynamicSettings
from pipelines.common.settings import MOST, AtLeast1
from pipelines.common.text import cut


class DsrSettings(DynamicSettings):
    """Dynamic sparse reparameterization (Mostafa & Wang 2019): a global threshold, growth across layers."""

    name: Literal["dsr"]
    scaling: bool = True
    """Layers that keep more weights get more. If false, each layer gets back as many as it lost."""
    initial_threshold: Annotated[float, Field(gt=0)] = 1e-3
    """Magnitude under which a unit is dropped at the start. It adapts."""
    target_moves: AtLeast1 | Annotated[float, Field(gt=0, lt=1)] = 0.12
    """Units to move in one reallocation (weights, where granularity is 4), as a count from 1 on (paper: N_p), or as a
    fraction of the active ones below 1. The threshold adapts to come near it."""

    @field_validator("target_moves", mode="before")
    @classmethod
    def _is_count_or_fraction(cls, value: Any) -> Any:
        """Raise ValueError with both rules in one, where a union would give a line for each."""
        is_count = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST
        if is_count or (isinstance(value, float) and 0 < value < 1):
            return value
        raise ValueError(
            f"is {cut(value)}; it must be a count of units from 1 to {MOST:,}, such as 600, or a fraction of the "
            f"active ones above 0 and below 1, such as 0.12"
        )

    def build(self) -> Dsr:
        return Dsr(self)


class Dsr(Dynamic):
    """Dynamic sparse reparameterization (Mostafa & Wang, ICML 2019, Algorithm 1).

    Paper: "Parameter efficient training of deep convolutional neural networks by dynamic sparse reparameterization".

    Units with mean |w| < H are dropped in all layers. Layer l regrows in proportion to R_l, the weights that it keeps.
    H doubles or halves when the number dropped, K, is below 0.9 or above 1.1 times N_p. K and N_p count units, as in
    the paper's experiments with kernel slices. R_l and the weights to share out are counted in weights, so that units
    of different size trade without loss.

    Departures: N_p may be a fraction of the active units at the event. It is capped at the number of units that can
    move: free positions, and all but one unit a layer. Otherwise H would grow without bound in a nearly dense network.
    Only layers that do not rest count: those that are frozen neither lose weights nor need any.
    """

    settings: DsrSettings
    drops_by_count = False

    def __init__(self, settings: DsrSettings) -> None:
        super().__init__(settings)
        self.threshold = settings.initial_threshold

    @property
    def shrink_obstacle(self) -> str:
        found = super().shrink_obstacle
        return found if self.settings.density is not None or self.settings.exploration is not None else ""

    @property
    def trades(self) -> bool:
        return self.settings.scaling

    def check(self, layers: Sequence[LayerSpec], active_units: Mapping[str, int]) -> None:
        super().check(layers, active_units)
        active = sum(active_units[layer.name] for layer in layers)
        if layers and self._target(active) > active:
            raise UserError(
                f"method.target_moves is {self.settings.target_moves:,}; the network has {active:,} active units in "
                f"all: take a tenth of that or less"
            )

    def moved_share(self, clock: Clock) -> float:
        """Share that the threshold aims at."""
        return self._target(self._active) / self._active

    @in_parts
    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        return cuts_below(scores, self.threshold)

    def shares(self, layers: Sequence[LayerChange]) -> Sequence[float | Fraction]:
        return by_kept(layers) if self.settings.scaling else super().shares(layers)

    def after(self, layers: Sequence[LayerChange]) -> None:
        layers = [layer for layer in layers if layer.name not in self.resting]
        dropped = sum(layer.dropped for layer in layers)
        free = sum(layer.room for layer in layers)
        droppable = sum(layer.active - 1 for layer in layers)
        if not self.trades:
            droppable = sum(min(layer.room, layer.active - 1) for layer in layers)
        target = min(self._target(sum(layer.active for layer in layers)), free, droppable)
        if dropped > 1.1 * target:
            self.threshold /= 2
        elif dropped < 0.9 * target:
            self.threshold *= 2

    def _target(self, active: int) -> int:
        """Units to move in an event, given the active ones before it."""
        target = self.settings.target_moves
        return target if isinstance(target, int) else max(1, round(target * active))

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
