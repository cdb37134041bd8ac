"""The masks: which weights are active. They stand beside the model, which stays an ordinary module.

A weight outside its mask is exactly 0 in the parameter itself. Masking the
gradient keeps it there: with zero gradient, zero weight and zero momentum, SGD
and Adam with weight decay leave it at 0. So the forward pass costs nothing
extra, and any `state_dict` consumer sees an ordinary network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynsparse.masks.granularity import LayerSpec
from dynsparse.masks.selection import draw_distinct, free_numbers, merge_sorted, seed_for

#: Density up to which a processor masks faster through the index than by looking at each weight's mask.
FEW = 0.2


class SparseLayer:
    """One weight tensor with its mask and the index of its active units.

    The index makes work on the active weights linear in their number. Only
    `MaskSet` changes what is active, and holds the memory of all layers' masks
    and indices in one piece each: the tensors here are views of it.
    """

    #: int64 [active units], rising. Replaced, never changed in place: snapshots refer to it.
    active: Tensor

    def __init__(self, spec: LayerSpec, weight: nn.Parameter, inactive: Tensor, explored: Tensor) -> None:
        """`inactive` and `explored` are bool [units]."""
        self.spec = spec
        self.weight = weight
        #: Bool, of `spec.mask_shape`: True where weights are held at 0. Ready for `masked_fill_`,
        #: which unlike multiplying by a mask stops a NaN too.
        self.inactive = inactive.view(spec.mask_shape)
        #: Bool [units]: was ever active.
        self.explored = explored
        self.explored_units = 0
        self._positions: dict[tuple[int, ...], Tensor] = {}

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def mask(self) -> Tensor:
        """Bool, of the weight's shape: True where active. A copy."""
        return (~self.inactive).expand(self.spec.shape).clone()

    @property
    def active_units(self) -> int:
        return self.active.numel()

    @property
    def active_weights(self) -> int:
        return self.active.numel() * self.spec.unit_size

    @property
    def is_full(self) -> bool:
        return self.active_units == self.spec.units

    @property
    def sparsity(self) -> float:
        return 1 - self.active_weights / self.spec.weights

    def gather(self, tensor: Tensor) -> Tensor:
        """The entries of a weight-shaped tensor (weight, gradient, momentum) at the active weights.

        Shape [active units, unit size], in logical order whatever the memory format.
        """
        return flat_view(tensor).index_select(0, self.positions(tensor)).view(-1, self.spec.unit_size)

    def values(self) -> Tensor:
        """The active weights as one dimension, in logical order."""
        return self.gather(self.weight).flatten()

    def scatter_(self, tensor: Tensor, values: Tensor) -> None:
        """Write values [active units, unit size] to the active entries of a weight-shaped tensor, in place."""
        flat_view(tensor)[self.positions(tensor)] = values.reshape(-1).to(tensor.dtype)

    def mask_(self, tensor: Tensor) -> None:
        """Set a weight-shaped tensor to 0 outside the mask, in place, whatever lies there, NaN too."""
        if self.is_full:
            return
        if tensor.is_cuda or self.active_weights > FEW * self.spec.weights:
            tensor.masked_fill_(self.inactive, 0)
            return
        flat, positions = flat_view(tensor), self.positions(tensor)
        values = flat.index_select(0, positions)
        flat.zero_().index_copy_(0, positions, values)

    def put_(self, tensor: Tensor, units: Tensor, values: Tensor) -> None:
        """Write values [k, unit size] to a weight-shaped tensor at `units` (int64 [k]), in place."""
        flat_view(tensor)[self._offsets(units, tensor.stride())] = values.reshape(-1).to(tensor)

    def zero_(self, tensor: Tensor, units: Tensor) -> None:
        """Set a weight-shaped tensor to 0 at `units` (int64 [k]), in place."""
        flat_view(tensor).index_fill_(0, self._offsets(units, tensor.stride()), 0)

    def unit_means(self, tensor: Tensor) -> Tensor:
        """Float [units]: the mean over each unit, active or not, of a weight-shaped tensor."""
        rows = tensor.reshape(self.spec.units, self.spec.unit_size)
        return rows.view(-1) if self.spec.unit_size == 1 else rows.mean(1)

    def positions(self, tensor: Tensor) -> Tensor:
        """int64 [active weights]: where the active weights lie in the flat memory of `tensor`."""
        strides = tensor.stride()
        if strides not in self._positions:
            self._positions[strides] = self._offsets(self.active, strides)
        return self._positions[strides]

    def _offsets(self, units: Tensor, strides: Sequence[int]) -> Tensor:
        spec = self.spec
        size = spec.unit_size
        within = torch.arange(size, device=units.device)
        if _is_row_major(spec.shape, strides):
            return units if size == 1 else (units[:, None] * size + within).view(-1)
        heads = _strided(units, spec.shape[: spec.mask_dims], strides[: spec.mask_dims])
        if size == 1:
            return heads
        within = _strided(within, spec.shape[spec.mask_dims :], strides[spec.mask_dims :])
        return (heads[:, None] + within).view(-1)

    def _activate(self, active: Tensor) -> None:
        self.active = active
        self._positions.clear()


def flat_view(tensor: Tensor) -> Tensor:
    """The memory of a tensor without gaps as one dimension, without a copy, in whatever order it lies."""
    tensor = tensor.detach()
    dense = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    assert dense == tensor.numel(), f"a tensor with gaps has no flat view: {tensor.shape} {tensor.stride()}"
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def _is_row_major(shape: Sequence[int], strides: Sequence[int]) -> bool:
    row_major = (math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return all(size == 1 or ours == theirs for size, ours, theirs in zip(shape, row_major, strides, strict=True))


def _strided(index: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Memory offsets of row-major indices over `shape`."""
    dims: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if dims and dims[-1][1] == size * stride:  # Both are one dimension: a division less.
            size, stride = dims.pop()[0] * size, stride
        dims.append((size, stride))
    offsets = torch.zeros_like(index)
    while len(dims) > 1:
        size, stride = dims.pop()
        above = index.div(size, rounding_mode="floor")
        offsets += (index - above * size) * stride
        index = above
    return offsets.add_(index, alpha=dims[0][1])


@dataclass(frozen=True)
class Moved:
    """What `MaskSet.move` did: for each layer its units, int64, rising."""

    dropped: Sequence[Tensor]
    grown: Sequence[Tensor]

    def units(self) -> Iterator[Tensor]:
        """For each layer those dropped, then those grown."""
        return (torch.cat(pair) for pair in zip(self.dropped, self.grown, strict=True))


class MaskSet:
    """The masks of all sparse layers of a model, and the only writer of them.

    On construction each layer gets the units `active_units[name]`: an int64
    tensor of them, rising and distinct, or how many to take at random (drawn
    from `seed` and the layer's name: the same on every rank and device). The
    weights outside are set to 0. `budget` is the number of active weights
    to be kept for ever; where units of different size trade it is met to
    within one unit.
    """

    def __init__(
        self, model: nn.Module, specs: Sequence[LayerSpec], active_units: Mapping[str, int | Tensor], *, seed: int = 0
    ) -> None:
        parameters = dict(model.named_parameters())
        devices = {parameters[spec.name].device for spec in specs}
        if len(devices) > 1:
            raise ValueError(
                f"sparse layers lie on {', '.join(sorted(map(str, devices)))}; masks need them on one device"
            )
        self.device = devices.pop() if devices else torch.device("cpu")
        #: Of all layers, their units numbered through: each layer's begin where those of the layers before end.
        self._units = [spec.units for spec in specs]
        self._inactive = torch.ones(sum(self._units), dtype=torch.bool, device=self.device)
        self._explored = torch.zeros_like(self._inactive)
        self.layers = [
            SparseLayer(spec, parameters[spec.name], inactive, explored)
            for spec, inactive, explored in zip(
                specs, self._of_layers(self._inactive), self._of_layers(self._explored), strict=True
            )
        ]
        self._set_active(self._first_active(active_units, seed))
        self.budget = self.active_weights
        self.apply_to_weights()

    def _first_active(self, active_units: Mapping[str, int | Tensor], seed: int) -> list[Tensor]:
        """Each layer's active units as asked for: int64, rising."""
        counts = []
        for layer in self.layers:
            asked = active_units[layer.name]
            count = asked if isinstance(asked, int) else asked.numel()
            if not 1 <= count <= layer.spec.units:
                raise ValueError(
                    f"{layer.name}: {count} active units asked; it has {layer.spec.units} and keeps at least 1"
                )
            counts.append(count if isinstance(asked, int) else 0)
        seeds = [seed_for(seed, "mask", layer.name) for layer in self.layers]
        drawn = self._numbers_of_layers(draw_distinct(self._units, counts, seeds, self.device), counts)
        given = (active_units[layer.name] for layer in self.layers)
        return [
            asked.to(self.device) if isinstance(asked, Tensor) else ours
            for asked, ours in zip(given, drawn, strict=True)
        ]

    def _of_layers(self, flags: Tensor) -> tuple[Tensor, ...]:
        """[units of all layers] to each layer's, without a copy."""
        return tuple(flags.split(self._units))

    def _numbers_of_layers(self, numbers: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Units numbered through (int64, rising), so many in each layer, to each layer's own numbers."""
        starts = accumulate(self._units, initial=0)
        return [part - start for part, start in zip(numbers.split(list(counts)), starts, strict=False)]

    def __iter__(self) -> Iterator[SparseLayer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def active_weights(self) -> int:
        return sum(layer.active_weights for layer in self.layers)

    @property
    def weights(self) -> int:
        """All weights of the sparse layers, active or not."""
        return sum(layer.spec.weights for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Over the sparse layers; the whole model's is lower where it has dense layers."""
        return 1 - self.active_weights / self.weights if self.layers else 0.0

    def set_active(self, layer: SparseLayer, active: Tensor) -> None:
        """Replace what is active in `layer` by the units `active` (int64, rising, distinct)."""
        self._set_active([active if one is layer else one.active for one in self.layers])

    def _set_active(self, active: Sequence[Tensor]) -> None:
        """Replace what is active by each layer's units."""
        self._inactive.fill_(True)
        self._take_index(active)
        numbers = self.numbers()
        self._inactive[numbers] = False
        self._explored[numbers] = True
        self._count_explored()

    def _count_explored(self) -> None:
        for layer in self.layers:
            layer.explored_units = int(layer.explored.count_nonzero())

    def _take_index(self, active: Sequence[Tensor]) -> None:
        #: int64 [active units of all layers]: each layer's own numbers, one layer after the other.
        self.active = torch.cat(list(active)) if active else torch.empty(0, dtype=torch.int64)
        for layer, part in zip(self.layers, self.active.split([part.numel() for part in active]), strict=True):
            layer._activate(part)

    def numbers(self) -> Tensor:
        """int64 [active units of all layers], rising: the active units, numbered through all layers."""
        starts = accumulate(self._units, initial=0)
        parts = [layer.active + start for layer, start in zip(self.layers, starts, strict=False)]
        return torch.cat(parts) if parts else self.active

    def draw_free(self, counts: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """At random `counts[i]` of the inactive units of layer i: int64, rising, numbered through all layers."""
        free = [layer.spec.units - layer.active_units for layer in self.layers]
        return free_numbers(self.numbers(), draw_distinct(free, counts, seeds, self.device))

    def move(self, gone: Tensor, grown: Tensor) -> Moved:
        """Drop the active units marked in `gone` (bool [active units of all layers]) and activate `grown`.

        `grown` is int64, rising, numbered through all layers, and free before
        the call, so that no unit is dropped and grown at once. Weights at
        dropped and grown units become 0. Linear in the active units; one host
        copy.
        """
        before = self.numbers()
        dropped, kept = before[gone], before[~gone]
        self._inactive[dropped] = True
        self._inactive[grown] = False
        after = merge_sorted(kept, grown)
        discovered = grown[~self._explored[grown]]
        self._explored[grown] = True
        counts = self._counts((dropped, grown, after, discovered))
        moved = Moved(*(self._numbers_of_layers(n, c) for n, c in zip((dropped, grown), counts[:2], strict=True)))
        self._take_index(self._numbers_of_layers(after, counts[2]))
        for layer, units, count in zip(self.layers, moved.units(), counts[3], strict=True):
            layer.zero_(layer.weight, units)
            layer.explored_units += count
        return moved

    def _counts(self, lists: Sequence[Tensor]) -> list[list[int]]:
        """For each list of units (int64, rising, numbered through all layers) how many lie in each layer."""
        ends = torch.tensor(list(accumulate(self._units)), device=self.device)
        upto = torch.stack([torch.searchsorted(numbers, ends) for numbers in lists]).tolist()
        return [[b - a for a, b in pairwise([0, *row])] for row in upto]

    @torch.no_grad()
    def apply_to_weights(self) -> None:
        """Set every weight outside its mask to exactly 0."""
        for layer in self.layers:
            layer.mask_(layer.weight)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients outside the masks to 0: before every optimizer step."""
        for layer in self.layers:
            if layer.weight.grad is not None:
                layer.mask_(layer.weight.grad)

    def explored(self) -> dict[str, float]:
        """Share of each layer's positions that were ever active."""
        return {layer.name: layer.explored_units / layer.spec.units for layer in self.layers}

    def check_budget(self) -> None:
        """Assert that the budget is met and no layer is empty. Costs nothing."""
        largest_unit = max((layer.spec.unit_size for layer in self.layers), default=1)
        assert abs(self.budget - self.active_weights) < largest_unit, (self.budget, self.active_weights)
        for layer in self.layers:
            assert layer.active_units >= 1, f"{layer.name} is empty"

    def check(self) -> None:
        """Assert all that must always hold: `check_budget`, and that index, mask and weights agree. Full scans."""
        self.check_budget()
        for layer in self.layers:
            at_index = layer.inactive.view(-1)[layer.active]
            marked = layer.spec.units - int(layer.inactive.count_nonzero())
            assert marked == layer.active_units and not at_index.any(), f"{layer.name}: index and mask disagree"
            assert bool((layer.active[1:] > layer.active[:-1]).all()), f"{layer.name}: index not rising"
            stray = int(layer.weight.detach().masked_select(layer.inactive).count_nonzero())
            assert stray == 0, f"{layer.name}: {stray} weights outside the mask are not 0"

    def state_dict(self) -> dict[str, Any]:
        """Masks packed to bits, explored positions to a bit for each inactive unit (active ones are), on the CPU."""
        return self.snapshot()()

    def snapshot(self) -> Callable[[], dict[str, Any]]:
        """Take what `state_dict` needs. The result gives it, in any thread, however the masks have moved meanwhile."""
        budget = self.budget
        taken = [(layer.spec, layer.active.cpu(), layer.explored.to("cpu", copy=True)) for layer in self.layers]
        return lambda: {"budget": budget, "layers": {spec.name: _packed(spec, *parts) for spec, *parts in taken}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over masks saved by `state_dict`. Weights are left alone. ValueError if layers differ."""
        ours = {layer.name: [list(layer.spec.shape), layer.spec.mask_dims] for layer in self.layers}
        theirs = {name: [saved["shape"], saved["mask_dims"]] for name, saved in state["layers"].items()}
        if ours != theirs:
            names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
            raise ValueError(f"sparse layers differ in shape, granularity or presence: {', '.join(names)}")
        saved = [state["layers"][layer.name] for layer in self.layers]
        masks = [unpack_bits(one["mask"], layer.spec.units) for layer, one in zip(self.layers, saved, strict=True)]
        self._set_active([torch.nonzero(mask).squeeze(1).to(self.device) for mask in masks])
        for layer, one, mask in zip(self.layers, saved, masks, strict=True):
            layer.explored.copy_(_explored(one, mask))
        self._count_explored()
        self.budget = int(state["budget"])


def _packed(spec: LayerSpec, active: Tensor, explored: Tensor) -> dict[str, Any]:
    """One layer of `MaskSet.state_dict`. In NumPy, which stays in its thread: torch would take cores from training."""
    inactive = np.ones(spec.units, dtype=bool)
    inactive[active.numpy()] = False
    return {
        "shape": list(spec.shape),
        "mask_dims": spec.mask_dims,
        "mask": pack_bits(torch.from_numpy(~inactive)),
        "explored_inactive": pack_bits(torch.from_numpy(explored.numpy()[inactive])),
    }


def _explored(saved: Mapping[str, Any], mask: Tensor) -> Tensor:
    """Bool [units], given the mask, bool [units]. Older checkpoints have a bit for each active unit too."""
    if "explored" in saved:
        return unpack_bits(saved["explored"], mask.numel())
    explored = mask.clone()
    explored[~mask] = unpack_bits(saved["explored_inactive"], mask.numel() - int(mask.count_nonzero()))
    return explored


def pack_bits(flags: Tensor) -> Tensor:
    """Bool [n] to uint8 [ceil(n / 8)] on the CPU, first flag in the highest bit."""
    return torch.from_numpy(np.packbits(flags.cpu().numpy()))


def unpack_bits(packed: Tensor, n: int) -> Tensor:
    """The inverse of `pack_bits`: bool [n] on the CPU."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=n).view(bool))
