"""The masks of a model. They stand beside the model, which stays an ordinary module.

A weight outside its mask is exactly 0 in the parameter itself. Masking the gradient keeps it there: with zero gradient,
zero weight and zero momentum, SGD and Adam with weight decay leave it at 0. So the forward pass costs nothing extra,
and any `state_dict` consumer sees an ordinary network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.masks.bits import pack_bits, unpack_bits
from dynsparse.masks.block import Block, blocks
from dynsparse.masks.granularity import LayerSpec
from dynsparse.masks.layer import SparseLayer
from dynsparse.masks.naming import named_parameters
from dynsparse.masks.structure import FREE, drawn, misfit
from dynsparse.seeds import seed_for

T = TypeVar("T")
_KEYS = ("shape", "mask_dims", "block", "structure")


class MaskSet:
    """The masks of all sparse layers of a model, and the only writer of them.

    On construction each layer gets the units `active_units[name]`: an int64 tensor of them, rising and distinct, or a
    number of units to take at random. These are drawn from `seed` and the layer's name, the same on every rank and
    device. The weights outside are set to 0; with `apply=False` they stay as they are until `apply_to_weights`.

    `budget` is the number of active weights, which reallocations keep. Where units of different size trade it is met
    to within one unit. UserError for layers on several devices, and for a number of units that a layer cannot have.

    Whoever gives units gives them with the structure of their layer: UserError where groups have unequal numbers. Only
    outputs of `fan_in` may have none at all, as a method may take them out. Moves keep it, and are not counted again.
    """

    def __init__(
        self,
        model: nn.Module,
        specs: Sequence[LayerSpec],
        active_units: Mapping[str, int | Tensor],
        *,
        seed: int = 0,
        apply: bool = True,
    ) -> None:
        parameters = named_parameters(model)
        weights = [parameters[spec.parameter] for spec in specs]
        if len(devices := {str(weight.device) for weight in weights}) > 1:
            raise UserError(
                f"sparse layers lie on {', '.join(sorted(devices))}, and masks need them on one device: "
                f"exclude those on the others"
            )
        counts = [_count(spec, active_units[spec.name]) for spec in specs]
        self.blocks = blocks(specs, weights, counts)
        self.layers = [layer for block in self.blocks for layer in block.layers]
        for block in self.blocks:
            self._draw(block, active_units, seed)
        self.budget = self.active_weights
        if apply:
            self.apply_to_weights()

    def _draw(self, block: Block, active_units: Mapping[str, int | Tensor], seed: int) -> None:
        """Activate the first units of a block: those given, or so many at random."""
        asked = [_structured(layer.spec, active_units[layer.name], seed) for layer in block.layers]
        counts = [count if isinstance(count, int) else 0 for count in asked]
        drawn = block.draw(counts, [seed_for(seed, "mask", layer.name) for layer in block.layers])
        units = [u.to(block.device) if isinstance(u, Tensor) else ours for u, ours in zip(asked, drawn, strict=True)]
        block.set_active(units)

    def __iter__(self) -> Iterator[SparseLayer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def active_weights(self) -> int:
        """Active weights of all layers together."""
        return sum(layer.active_weights for layer in self.layers)

    @property
    def weights(self) -> int:
        """Weights of the sparse layers, active or not."""
        return sum(layer.spec.weights for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of inactive weights in the sparse layers. The whole model's is lower where it has dense layers."""
        return 1 - self.active_weights / self.weights if self.layers else 0.0

    def set_active(self, layer: SparseLayer, active: Tensor) -> None:
        """Make the units `active` (int64, rising, distinct) the active ones of `layer`.

        UserError if they have not its structure.
        """
        _require_structure(layer.spec, active)
        block = next(block for block in self.blocks if layer in block.layers)
        block.set_active([active if one is layer else one.active for one in block.layers])

    def by_block(self, of_layers: Sequence[T]) -> Iterator[tuple[Block, Sequence[T]]]:
        """Yield each block with its part of a sequence that has one entry a layer."""
        first = 0
        for block in self.blocks:
            yield block, of_layers[first : first + len(block.layers)]
            first += len(block.layers)

    @torch.no_grad()
    def apply_to_weights(self) -> None:
        """Set every weight outside its mask to exactly 0."""
        for layer in self.layers:
            layer.mask_(layer.weight)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients outside the masks to 0, as is due before every optimizer step."""
        for layer in self.layers:
            if (gradient := layer.gradient) is not None:
                layer.mask_(gradient)

    @torch.no_grad()
    def strays(self) -> dict[str, int]:
        """Count the weights outside the mask that are not 0, in each layer with any. One pass, one copy to the host."""
        return self.named(self.stray_counts().tolist())

    @torch.no_grad()
    def stray_counts(self) -> Tensor:
        """Count the weights outside the mask that are not 0, in each layer: int64 [layers], on the device."""
        return torch.stack([layer.strays() for layer in self.layers]) if self.layers else torch.zeros(0)

    def named(self, counts: Sequence[int]) -> dict[str, int]:
        """Give each layer's count its name. Those of 0 are left out."""
        return {layer.name: count for layer, count in zip(self.layers, counts, strict=True) if count}

    def to(self, device: torch.device) -> None:
        """Follow weights that have moved to another device."""
        for block in self.blocks:
            block.to(device)
        self.blocks = [part for block in self.blocks for part in block.parts()]

    def explored(self) -> dict[str, float]:
        """Fraction of each layer's positions that were ever active."""
        return {layer.name: layer.explored_units / layer.spec.units for layer in self.layers}

    @property
    def ever_active(self) -> float | None:
        """Fraction of all weights that were ever active: R_s of in-time over-parameterization (Liu et al. 2021).

        None without layers.
        """
        found = sum(layer.explored_units * layer.spec.unit_size for layer in self.layers)
        return found / self.weights if self.layers else None

    def check_budget(self) -> None:
        """Assert that the budget is met and no layer is empty. Costs nothing."""
        largest_unit = max((layer.spec.unit_size for layer in self.layers), default=1)
        assert abs(self.budget - self.active_weights) < largest_unit, (self.budget, self.active_weights)
        for layer in self.layers:
            assert layer.active_units >= 1, f"{layer.name} is empty"

    def check(self) -> None:
        """Assert what must always hold: `check_budget`, structures, and that index and weights agree.

        It reads all weights.
        """
        self.check_budget()
        for layer in self.layers:
            assert bool((layer.active[1:] > layer.active[:-1]).all()), f"{layer.name}: index not rising"
            reason = _misfit(layer.spec, layer.active)
            assert reason is None, f"{layer.name} {reason}"
            stray = int(layer.weight.detach().masked_select(layer.inactive).count_nonzero())
            assert stray == 0, f"{layer.name}: {stray} weights outside the mask are not 0"

    def state_dict(self) -> dict[str, Any]:
        """Masks as one bit a unit, explored positions as one bit an inactive unit, on the CPU.

        Active units are explored and need no bit.
        """
        return self.snapshot()()

    def snapshot(self) -> Callable[[], dict[str, Any]]:
        """Copy what `state_dict` needs. The function returned gives it, in any thread, though masks move meanwhile."""
        budget = self.budget
        taken = [(layer.spec, *layer.on_host()) for layer in self.layers]
        return lambda: {"budget": budget, "layers": {spec.name: _packed(spec, *parts) for spec, *parts in taken}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over masks saved by `state_dict`. Weights stay as they are.

        UserError if layers differ, or have not their structure; then all is as it was.
        """
        ours = {layer.name: _described(layer.spec) for layer in self.layers}
        theirs = {name: {key: saved.get(key) for key in _KEYS} for name, saved in state["layers"].items()}
        if ours != theirs:
            names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
            raise UserError(f"sparse layers differ in shape, granularity or presence: {', '.join(names)}")
        saved = [state["layers"][layer.name] for layer in self.layers]
        masks = [unpack_bits(one["mask"], layer.spec.units) for layer, one in zip(self.layers, saved, strict=True)]
        for layer, mask in zip(self.layers, masks, strict=True):
            if layer.spec.structure != FREE:
                _require_structure(layer.spec, torch.nonzero(mask).squeeze(1))
        for block, parts in self.by_block(masks):
            block.set_active([torch.nonzero(mask).squeeze(1).to(block.device) for mask in parts])
        for layer, one, mask in zip(self.layers, saved, masks, strict=True):
            layer.explored = _explored(one, mask)
        self.budget = int(state["budget"])


def _structured(spec: LayerSpec, asked: int | Tensor, seed: int) -> int | Tensor:
    """Draw the first units of a layer whose mask has a structure; leave others as they are asked for."""
    if isinstance(asked, Tensor):
        _require_structure(spec, asked)
        return asked
    return asked if spec.structure == FREE else drawn(spec, asked, seed_for(seed, "mask", spec.name))


def _misfit(spec: LayerSpec, active: Tensor) -> str | None:
    """Say how units miss the structure, as any method may have it: one takes outputs out, one changes the density."""
    return misfit(spec, active, may_empty=True)


def _require_structure(spec: LayerSpec, active: Tensor) -> None:
    if reason := _misfit(spec, active):
        raise UserError(f"{spec.name} {reason}: give it a mask of that structure")


def _count(spec: LayerSpec, asked: int | Tensor) -> int:
    """Number of units asked for. UserError if the layer cannot have as many."""
    count = asked if isinstance(asked, int) else asked.numel()
    if not 1 <= count <= spec.units:
        raise UserError(f"{spec.name}: {count} active units asked; it has {spec.units} and keeps at least 1")
    return count


def _described(spec: LayerSpec) -> dict[str, Any]:
    """Facts of a layer in a saved state, by _KEYS. Those that are None are not written, and older states lack them."""
    block = None if spec.block is None else asdict(spec.block)
    structure = None if spec.structure == FREE else spec.structure
    return {"shape": list(spec.shape), "mask_dims": spec.mask_dims, "block": block, "structure": structure}


def _packed(spec: LayerSpec, active: Tensor, explored: Tensor) -> dict[str, Any]:
    """One layer of `MaskSet.state_dict`. NumPy stays in its thread; torch would take cores from training."""
    inactive = np.ones(spec.units, dtype=bool)
    inactive[active.numpy()] = False
    return {
        **{key: value for key, value in _described(spec).items() if value is not None},
        "mask": pack_bits(torch.from_numpy(~inactive)),
        "explored_inactive": pack_bits(torch.from_numpy(explored.numpy()[inactive])),
    }


def _explored(saved: Mapping[str, Any], mask: Tensor) -> Tensor:
    """Explored flags, bool [units], given the mask, bool [units]. Older checkpoints hold flags of active units too."""
    if "explored" in saved:
        return unpack_bits(saved["explored"], mask.numel())
    explored = mask.clone()
    explored[~mask] = unpack_bits(saved["explored_inactive"], mask.numel() - int(mask.count_nonzero()))
    return explored
