"""The masks: which weights are active. They stand beside the model, which stays an ordinary module.

A weight outside its mask is exactly 0 in the parameter itself. Masking the
gradient keeps it there: with zero gradient, zero weight and zero momentum, SGD
and Adam with weight decay leave it at 0. So the forward pass costs nothing
extra, and any `state_dict` consumer sees an ordinary network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynsparse.masks.granularity import LayerSpec
from dynsparse.masks.selection import draw_free, merge_sorted, seed_for


class SparseLayer:
    """One weight tensor with its mask and the index of its active units.

    The index makes work on the active weights linear in their number. Only
    `MaskSet` changes what is active.
    """

    def __init__(self, spec: LayerSpec, weight: nn.Parameter) -> None:
        self.spec = spec
        self.weight = weight
        #: Bool, of `spec.mask_shape`: True where weights are held at 0. Ready for `masked_fill_`,
        #: which unlike multiplying by a mask stops a NaN too.
        self.inactive = torch.ones(spec.mask_shape, dtype=torch.bool, device=weight.device)
        #: int64 [active units], rising. Replaced, never changed in place: snapshots refer to it.
        self.active = torch.empty(0, dtype=torch.int64, device=weight.device)
        #: Bool [units]: was ever active.
        self.explored = torch.zeros(spec.units, dtype=torch.bool, device=weight.device)
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
        return flat_view(tensor)[self.positions(tensor)].view(-1, self.spec.unit_size)

    def values(self) -> Tensor:
        """The active weights as one dimension, in logical order."""
        return self.gather(self.weight).flatten()

    def scatter_(self, tensor: Tensor, values: Tensor) -> None:
        """Write values [active units, unit size] to the active entries of a weight-shaped tensor, in place."""
        flat_view(tensor)[self.positions(tensor)] = values.reshape(-1).to(tensor.dtype)

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
        if tuple(strides) == _contiguous_strides(spec.shape) and spec.unit_size == 1:
            return units
        within = _strided(torch.arange(spec.unit_size, device=units.device), spec.shape, strides, spec.mask_dims)
        heads = _strided(units, spec.shape[: spec.mask_dims], strides, 0)
        return (heads[:, None] + within[None, :]).reshape(-1)

    def _activate(self, active: Tensor) -> None:
        self.active = active
        self._positions.clear()


def flat_view(tensor: Tensor) -> Tensor:
    """The memory of a tensor without gaps as one dimension, without a copy, in whatever order it lies."""
    tensor = tensor.detach()
    dense = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    assert dense == tensor.numel(), f"a tensor with gaps has no flat view: {tensor.shape} {tensor.stride()}"
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def _contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _strided(index: Tensor, shape: Sequence[int], strides: Sequence[int], first: int) -> Tensor:
    """Memory offsets of row-major indices over `shape[first:]`."""
    offsets = torch.zeros_like(index)
    for size, stride in reversed(list(zip(shape[first:], strides[first:], strict=False))):
        offsets += (index % size) * stride
        index = index // size
    return offsets


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
        self.layers = [SparseLayer(spec, parameters[spec.name]) for spec in specs]
        for layer in self.layers:
            units, active = layer.spec.units, active_units[layer.name]
            count = active if isinstance(active, int) else active.numel()
            if not 1 <= count <= units:
                raise ValueError(f"{layer.name}: {count} active units asked; it has {units} and keeps at least 1")
            if isinstance(active, int):
                active = draw_free(layer.inactive.view(-1), units, active, seed_for(seed, "mask", layer.name))
            self.set_active(layer, active.to(layer.weight.device))
        self.budget = self.active_weights
        self.apply_to_weights()

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
        layer.inactive.fill_(True)
        layer.inactive.view(-1)[active] = False
        layer.explored[active] = True
        layer._activate(active)

    def move(self, layer: SparseLayer, gone: Tensor, grown: Tensor) -> Tensor:
        """Drop the active units marked in `gone` (bool [active units]) and activate `grown`.

        `grown` is int64, rising, and free before the call, so that no unit is
        dropped and grown at once. Weights at dropped and grown units become 0.
        Linear in the active units. Returns the dropped units, int64.
        """
        dropped, kept = layer.active[gone], layer.active[~gone]
        flat = layer.inactive.view(-1)
        flat[dropped] = True
        flat[grown] = False
        layer.explored[grown] = True
        layer._activate(merge_sorted(kept, grown))
        layer.zero_(layer.weight, torch.cat((dropped, grown)))
        return dropped

    @torch.no_grad()
    def apply_to_weights(self) -> None:
        """Set every weight outside its mask to exactly 0."""
        for layer in self.layers:
            if not layer.is_full:
                layer.weight.masked_fill_(layer.inactive, 0)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients outside the masks to 0: before every optimizer step."""
        for layer in self.layers:
            if layer.weight.grad is not None and not layer.is_full:
                layer.weight.grad.masked_fill_(layer.inactive, 0)

    def explored(self) -> dict[str, float]:
        """Share of each layer's positions that were ever active. One host copy."""
        if not self.layers:
            return {}
        counts = torch.stack([layer.explored.count_nonzero() for layer in self.layers]).tolist()
        return {layer.name: count / layer.spec.units for layer, count in zip(self.layers, counts, strict=True)}

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
        for layer in self.layers:
            saved = state["layers"][layer.name]
            mask = unpack_bits(saved["mask"], layer.spec.units)
            self.set_active(layer, torch.nonzero(mask).squeeze(1).to(layer.weight.device))
            layer.explored.copy_(_explored(saved, mask))
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
