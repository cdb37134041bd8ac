"""SRigL: RigL with as many inputs for each neuron, and neurons with few useful weights taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, SparseLayer
from dynsparse.masks.selection import chosen, cuts_smallest
from dynsparse.masks.structure import FAN_IN, groups_of
from dynsparse.methods.base import Share
from dynsparse.methods.rigl import Rigl, RiglSettings
from pipelines.common.text import alike, cut


class SriglSettings(RiglSettings):
    """SRigL (Lasby et al. 2024): RigL under a constant fan-in, with ablation; needs `sparsity.structure: fan_in`."""

    name: Literal["srigl"]  # type: ignore[assignment]
    ablation: Share = 0.3
    """Fraction of its fan-in that a neuron needs as salient weights; with fewer it is taken out. 0: none is."""
    keep_neurons: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=1000)] | None = None
    """Shell patterns of layers that keep all their neurons; null: the last layer, whose neurons are the classes."""

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

    @property
    def _kept(self) -> Sequence[str]:
        """Patterns of the layers that keep their neurons."""
        given = self.settings.keep_neurons
        return [self.masks.layers[-1].name] if given is None else given

    def group_targets(
        self, layer: SparseLayer, scores: Tensor, costs: Tensor | None, units: int, dropped: int
    ) -> Tensor | None:
        groups = groups_of(layer.spec)
        assert groups is not None and costs is not None
        if not self.settings.ablation or any(fnmatch(layer.name, pattern) for pattern in self._kept):
            return None
        active = torch.zeros(layer.spec.units, dtype=torch.bool, device=scores.device).index_fill_(
            0, layer.active, True
        )
        there = groups.of(active).sum(1)
        is_out = (there == 0)[:, None].expand(-1, groups.size)
        open_costs = costs.masked_fill(groups.units(is_out.contiguous()), torch.inf)
        salient = groups.of(self._salient(layer, active, scores, open_costs, dropped)).sum(1)
        needed = (self.settings.ablation * there).clamp(min=1)
        stays = (there > 0) & (salient >= needed)
        if not bool(stays.any()):  # Each layer keeps a neuron.
            stays = torch.arange(groups.count, device=stays.device) == salient.masked_fill(there == 0, -1).argmax()
        fan_in = max(1, min(groups.size, units // int(stays.sum())))
        return torch.where(stays, fan_in, 0)

    def _salient(self, layer: SparseLayer, active: Tensor, scores: Tensor, costs: Tensor, moved: int) -> Tensor:
        """Mark the active units but the `moved` smallest, and the `moved` largest gradients: bool [units]."""
        lowest, largest = cuts_smallest([scores, costs], [moved, min(moved, int(costs.isfinite().sum()))])
        kept = active.index_put((layer.active[chosen(scores, lowest)],), torch.tensor(False, device=active.device))
        return kept | chosen(costs, largest)
