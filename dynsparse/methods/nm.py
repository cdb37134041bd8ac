"""N:M: of each M consecutive inputs N are active, and which of them is learnt: SR-STE, or moves by gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, SparseLayer
from dynsparse.masks.selection import Cut, cuts_fraction
from dynsparse.masks.structure import TRANSPOSABLE, blocks_of, largest_pattern, n_of_m
from dynsparse.methods.base import Method, SomeShare
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import Dynamic, DynamicSettings, is_set
from dynsparse.methods.reserved import Reserved, refuse_draws, with_nan
from dynsparse.schedules import Period, StepTable, cosine
from pipelines.common.settings import Count

_OF_MAGNITUDE = ("straight_through", "pull", "transposable")
_OF_GRADIENT = ("fraction", "until")


class NmSettings(DynamicSettings):
    """N:M that is learnt (Zhou et al. 2021, SR-STE); needs `sparsity.structure: N:M`, such as 2:4."""

    name: Literal["nm"]
    criterion: Literal["magnitude", "gradient"] = "magnitude"
    """magnitude: the N largest of all M weights are active. gradient: as `rigl` within each group of M."""
    period: Period = StepTable(((0, 100),))
    """Steps between choices of the active weights, by epoch."""
    stop_epoch: Count = 1000
    """Choose weights, and train inactive ones, only before this epoch."""
    straight_through: bool = True
    """Inactive weights train too, by the gradients of their places; else they rest. For the criterion magnitude."""
    pull: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2e-4
    """Factor of an inactive weight that is added to its gradient (lambda_W); 0 is plain STE."""
    transposable: bool = False
    """Keep N of each M outputs active too, for each input: the pattern of the backward pass."""
    fraction: SomeShare = 0.3
    """Fraction of each layer's active weights to move at the start, falling to 0. For the criterion gradient."""
    until: SomeShare = 0.75
    """Fraction of training in which weights move. For the criterion gradient."""

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> NmSettings:
        by_magnitude = self.criterion == "magnitude"
        for name in _OF_GRADIENT if by_magnitude else _OF_MAGNITUDE:
            if is_set(self, name):
                raise ValueError(f"{name} has no effect with criterion {self.criterion}: leave it out")
        if not self.straight_through and is_set(self, "pull"):
            raise ValueError("pull has no effect without straight_through, as inactive weights rest: leave it out")
        if self.density is not None:
            raise ValueError("density changes how many weights are active, and N:M keeps it: leave it out")
        if by_magnitude:
            refuse_draws(self)
        return self

    def pattern(self, structure: str) -> str:
        """Pattern of the masks: transposable where the option says so."""
        is_n_of_m = n_of_m(structure) is not None
        return f"{structure}{TRANSPOSABLE}" if self.transposable and is_n_of_m else structure

    def build(self) -> Method:
        return SrSte(self) if self.criterion == "magnitude" else NmByGradient(self)


class _Nm(Dynamic):
    """Base of both criteria."""

    settings: NmSettings

    def check(self, layers: Sequence[LayerSpec], active_units: Mapping[str, int]) -> None:
        super().check(layers, active_units)
        if free := [layer for layer in layers if n_of_m(layer.structure) is None]:
            raise UserError(
                f"method nm keeps N of each M weights, and sparsity.structure is {free[0].structure}: set it to N:M, "
                f"such as 2:4"
            )
        if self.settings.transposable and (rows := [layer for layer in layers if blocks_of(layer) is None]):
            raise UserError(
                f"method.transposable is true, and the masks of {rows[0].name} are {rows[0].structure} along inputs "
                f"alone: give the method by its name and options, and no MaskSet"
            )


class SrSte(_Nm, Reserved):
    """Zhou et al., "Learning N:M fine-grained structured sparse neural networks from scratch", ICLR 2021.

    The N largest of M weights are in the network. All weights get the gradient of their places in it, as if it were
    their own (straight-through estimator), and inactive ones `pull` times their value besides (SR-STE): W <- W - lr (g
    + lambda_W (1 - mask) W). Lambda_W is 2e-4 in the authors' code. Inactive values lie beside the masks
    (`masks.reserve`), and the optimizer's weight decay and momentum act on them too.

    Departures: N:M is chosen every `period` steps, where the paper chooses it in every forward pass; `period: 1` is
    that. The gradients of inactive weights are not clipped. After `stop_epoch` the masks stay, and inactive weights no
    longer train.

    With `straight_through` it reads whole gradients in every step before `stop_epoch`: `distributed.gradients: active`
    saves nothing until then. Memory is that of a dense network and more: 4 bytes a weight for the values, as much for
    the copy of the gradient in a step, and the optimizer's state of all weights. Checkpoints hold all of it.

    `transposable`: each block of M outputs by M inputs has N a row and a column (Hubara et al., NeurIPS 2021). The
    active weights are the pattern of largest sum of |w|: up to M = 4 exactly, above by a greedy choice with a bound
    (`masks.transposable`). A block keeps its pattern where none is found with a larger sum.
    """

    @property
    def observes(self) -> bool:
        return self.settings.straight_through

    def pull(self, layer: SparseLayer) -> float:
        return self.settings.pull

    def drop_scores(self, layer: SparseLayer) -> Tensor:
        if not self.settings.transposable:
            return super().drop_scores(layer)
        stays = self._largest(layer).index_select(0, layer.active)
        scores = torch.where(stays, 0.0, -float(layer.spec.units)).double()  # Below any rank: it falls.
        return with_nan(scores, self._costs(layer).index_select(0, layer.active))

    def grow_scores(self, layer: SparseLayer) -> Tensor:
        return self._largest(layer).float() if self.settings.transposable else super().grow_scores(layer)

    def _costs(self, layer: SparseLayer) -> Tensor:
        assert self.reserve is not None
        return self.reserve.costs(layer)

    def _largest(self, layer: SparseLayer) -> Tensor:
        """Mark the units that are active after the event: bool [units]."""
        magnitudes = -self._costs(layer).clamp(max=0).nan_to_num(nan=0.0)
        return largest_pattern(layer.spec, magnitudes, ~layer.inactive.view(-1))


class NmByGradient(_Nm):
    """RigL (Evci et al. 2020) within groups of M weights: a fraction of the active ones, the smallest, falls.

    Each group grows as many as it lost where its |gradient| is largest. The fraction falls to 0 along a cosine. It is
    `rigl` under the same structure, with no other scope. It reads whole gradients in steps with an event, and keeps
    nothing.
    """

    def moves(self, clock: Clock) -> bool:
        return clock.progress < self.settings.until and super().moves(clock)

    def moved_share(self, clock: Clock) -> float:
        return cosine(self.settings.fraction, 0, clock.progress / self.settings.until)

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        return cuts_fraction(scores, self.moved_share(clock))

    def grow_scores(self, layer: SparseLayer) -> Tensor:
        assert layer.weight.grad is not None  # Layers without one rest (`grows_by_gradient`).
        return layer.unit_means(layer.weight.grad.abs())
