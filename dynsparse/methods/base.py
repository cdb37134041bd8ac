"""The contract of a method: the rule that decides what to drop, how to share the budget, what to grow.

A method is pure functions of tensors. It knows no ranks, files, clocks or
processes: `Reallocator` calls it, makes its decisions exact, sends them to all
ranks and applies them. Every method of this class has a default but
`drop_cuts`; a subclass states only what sets it apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor

from dynsparse.masks import MaskSet, SparseLayer
from dynsparse.masks.selection import Cut
from dynsparse.settings import Settings


@dataclass(frozen=True)
class Clock:
    """Where training stands, after an optimizer step."""

    step: int
    """Optimizer steps done, over the whole run."""
    epoch: int
    """Counted from 0."""


@dataclass(frozen=True)
class LayerChange:
    """What one reallocation does to one layer, in units of `unit_size` weights."""

    name: str
    units: int
    unit_size: int
    active: int
    """Active units before."""
    dropped: int
    grown: int = 0

    @property
    def kept(self) -> int:
        return self.active - self.dropped

    @property
    def room(self) -> int:
        """Units that can grow: those free before, as none returns in the event that dropped it."""
        return self.units - self.active


class MethodSettings(Settings):
    """Base of each method's settings; `name` selects the method in a config."""

    name: str

    def build(self) -> Method:
        raise NotImplementedError

    @property
    def sparse(self) -> bool:
        """Whether the network is sparse at all."""
        return True


class Method:
    """Base of all methods. Instances hold only state that is the same on every rank."""

    def check(self, masks: MaskSet) -> None:
        """Raise UserError if the settings cannot work on these layers. Before the first step."""

    def is_due(self, clock: Clock) -> bool:
        """Whether to reallocate after this step. Default: never."""
        return False

    def drop_scores(self, layer: SparseLayer) -> Tensor:
        """float [active units]: the lowest go first. Default: mean |w| over each unit."""
        values = layer.gather(layer.weight).abs()
        return values.view(-1) if layer.spec.unit_size == 1 else values.mean(1)

    def drop_cuts(self, scores: Sequence[Tensor]) -> Sequence[Cut]:
        """What to drop in each layer, given its `drop_scores`.

        `Reallocator` lowers a cut that would empty a layer, or drop more than can be grown.
        """
        raise NotImplementedError

    def shares(self, layers: Sequence[LayerChange]) -> Sequence[float | Fraction]:
        """In what proportions the layers share the freed weights. Default: each gets back what it lost.

        Any scale; `Reallocator` makes whole units of it that sum to the budget exactly.
        """
        return [Fraction(layer.dropped * layer.unit_size) for layer in layers]

    def grow_scores(self, layer: SparseLayer) -> Tensor | None:
        """float [units]: the highest free ones grow. None (the default): at random, uniformly.

        Called after backward, before gradients are masked, on steps that end in a reallocation.
        """
        return None

    def after(self, layers: Sequence[LayerChange]) -> None:
        """Adapt own state to what a reallocation did. Runs on every rank with the same argument."""

    def scalars(self) -> Mapping[str, float]:
        """Numbers to log with each reallocation, such as a threshold."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state, f"{type(self).__name__} keeps no state, yet {sorted(state)} was saved"
