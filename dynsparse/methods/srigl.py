"""SRigL: RigL with as many inputs for each neuron, and neurons with few useful weights taken out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatch
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec
from dynsparse.masks.regrouping import Wish
from dynsparse.masks.selection import Cut, chosen, cuts_smallest
from dynsparse.masks.structure import FAN_IN
from dynsparse.methods.base import Share
from dynsparse.methods.rigl import Rigl, RiglSettings
from pipelines.common.text import alike, cut


class SriglSettings(RiglSettings):
    """SRigL (Lasby et al. 2024): RigL under a constant fan-in, with ablation; needs `sparsity.structure: fan_in`."""

    name: Literal["srigl"]  # type: ignore[assignment]
    ablation: Share = 0.3
    """Fraction of its fan-in that a neuron needs as salient weights; with fewer it is taken out. 0: none is."""
    keep_neurons: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=1000)] | None = None
    """Shell patterns of layers that keep all their neurons; null: the last sparse layer, whose neurons are the classes.

    Where the head is dense, another layer is the last: [] lets neurons of all sparse layers go then."""

    @model_validator(mode="after")
    def _some_neurons_go(self) -> SriglSettings:
        if not self.ablation and self.keep_neurons is not None:
            raise ValueError("keep_neurons has no effect with ablation 0, which takes no neuron out: leave it out")
        return self

    def build(self) -> Srigl:
        return Srigl(self)


class Srigl(Rigl):
    """Lasby, Golubeva, Evci, Nica & Ioannou, "Dynamic sparse training with structured sparsity", ICLR 2024.

    Section 3.1: as RigL, K weights of a layer are to move. Salient are the active weights but the K smallest, and the K
    largest gradients of the others. A neuron with fewer salient weights than `ablation` of its fan-in is taken out, and
    its weights go to the others: k' = weights / neurons left. The K smallest go, and each neuron grows its largest
    |gradients| until it has k'. The last layer keeps its neurons, as in the authors' code.

    The default of 0.3 is that of the authors' command for ImageNet; Vision Transformers need a higher one.

    Departures: k' is rounded down, so that a layer may lose less than a weight a neuron with each ablation. A neuron
    that is out stays out; in the authors' code its gradients may bring it back. There the K largest gradients are of
    all weights, active ones included. What is dropped in an event does not grow in it; so fewer than K move where a
    neuron has little room.
    """

    settings: SriglSettings

    def check(self, layers: Sequence[LayerSpec], active_units: Mapping[str, int]) -> None:
        super().check(layers, active_units)
        if free := [layer for layer in layers if layer.structure != FAN_IN]:
            raise UserError(
                f"method srigl keeps the fan-in constant, and sparsity.structure is {free[0].structure}: set it to "
                f"fan_in"
            )
        known = [layer.name for layer in layers]
        for pattern in self.settings.keep_neurons or []:
            if not any(fnmatch(name, pattern) for name in known):
                raise UserError(f"method.keep_neurons: '{cut(pattern)}' matches no sparse layer{alike(pattern, known)}")

    def may_empty(self, layers: Sequence[LayerSpec]) -> Collection[str]:
        """Names of the layers that may lose neurons: all but those that keep theirs."""
        kept, names = self.settings.keep_neurons, [layer.name for layer in layers]
        patterns = names[-1:] if kept is None else kept
        return {one for one in names if self.settings.ablation > 0 and not any(fnmatch(one, p) for p in patterns)}

    def group_targets(self, wishes: Sequence[Wish]) -> Sequence[Tensor | None]:
        losing = self.may_empty([layer.spec for layer in self.masks])
        thinned = [wish for wish in wishes if wish.layer.name in losing]
        names = [wish.layer.name for wish in thinned]
        salient = dict(zip(names, _salient(thinned), strict=True))
        return [self._fan_in(wish, salient[wish.layer.name]) if wish.layer.name in salient else None for wish in wishes]

    def _fan_in(self, wish: Wish, salient: Tensor) -> Tensor:
        """Fan-in of each neuron, given the salient units of each: int64 [neurons], 0 for those that are out."""
        there = wish.groups.of(wish.active).sum(1)
        needed = (self.settings.ablation * there).clamp(min=1)
        stays = (there > 0) & (salient >= needed)
        best = torch.arange(len(stays), device=stays.device) == salient.masked_fill(there == 0, -1).argmax()
        stays = torch.where(stays.any(), stays, best)  # Each layer keeps a neuron.
        fan_in = (wish.units // stays.sum()).clamp(1, wish.groups.size)
        return torch.where(stays, fan_in, 0)


def _salient(wishes: Sequence[Wish]) -> list[Tensor]:
    """Count each neuron's active units but the smallest that are to move, and its largest gradients: int64 [neurons].

    As many gradients as units that are to move, among those of neurons that are not out.
    """
    costs = [_open_costs(wish) for wish in wishes]
    free = torch.stack([one.isfinite().count_nonzero() for one in costs]).tolist() if costs else []
    moved = [wish.dropped for wish in wishes]
    largest = [min(*pair) for pair in zip(moved, free, strict=True)]
    cuts = cuts_smallest([*(wish.scores for wish in wishes), *costs], [*moved, *largest])
    falls, grows = cuts[: len(wishes)], cuts[len(wishes) :]
    return [_salient_of(*one) for one in zip(wishes, costs, falls, grows, strict=True)]


def _salient_of(wish: Wish, costs: Tensor, falls: Cut, grows: Cut) -> Tensor:
    gone = chosen(wish.scores, falls)
    kept = wish.active.index_copy(0, wish.layer.active, ~gone)
    return wish.groups.of(kept | chosen(costs, grows)).sum(1)


def _open_costs(wish: Wish) -> Tensor:
    """Growth costs, float [units], inf where active and in neurons that are out."""
    groups = wish.groups
    assert wish.costs is not None
    is_out = (groups.of(wish.active).sum(1) == 0)[:, None].expand(-1, groups.size)
    return wish.costs.masked_fill(groups.units(is_out.contiguous()), torch.inf)
