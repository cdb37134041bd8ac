"""Tied weights (HashedNets, Chen et al. 2015): the one true parametrization.

A layer's full tensor is read from a smaller bank of values at every forward; only the bank is trained. Units are tied
as they would be masked: with `granularity` 2 whole kernel slices share their values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dynsparse.masks.granularity import LayerSpec
from dynsparse.seeds import seed_for


class SharedUnits(nn.Module):
    """Parametrization from a bank [bank units, *unit shape] to a weight: unit i is bank unit `index[i]`.

    Every bank unit is used equally often to within one, in an order drawn from `seed` and the layer's name.
    """

    index: Tensor

    def __init__(self, spec: LayerSpec, bank_units: int, seed: int, device: torch.device) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed_for(seed, "tie", spec.name))
        index = (torch.arange(spec.units) % bank_units)[torch.randperm(spec.units, generator=generator)]
        # Follows from the seed: not worth 8 bytes a unit in every checkpoint.
        self.register_buffer("index", index.to(device), persistent=False)
        self.spec, self.bank_units = spec, bank_units

    def forward(self, bank: Tensor) -> Tensor:
        """Weight of `spec.shape` from the bank."""
        return bank.index_select(0, self.index).view(self.spec.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Bank to begin with: each entry is the first weight that it stands for, drawn as all weights are."""
        units = weight.detach().reshape(self.spec.units, *self.spec.shape[self.spec.mask_dims :])
        _, order = self.index.sort(stable=True)
        uses = self.uses()
        return units[order[uses.cumsum(0) - uses]].clone()

    def uses(self) -> Tensor:
        """Number of units of the layer that each bank unit stands for: int64 [bank units]."""
        return torch.bincount(self.index, minlength=self.bank_units)


class TiedLayer:
    """Facts of a tied layer, by the names that `SparseLayer` gives them."""

    def __init__(self, spec: LayerSpec, bank: nn.Parameter) -> None:
        self.spec = spec
        self.weight = bank

    @property
    def name(self) -> str:
        """Parameter name of the weight before it was tied."""
        return self.spec.name

    @property
    def active_weights(self) -> int:
        """Values in the bank."""
        return self.weight.numel()

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that have no value of their own."""
        return 1 - self.active_weights / self.spec.weights

    def values(self) -> Tensor:
        """View the bank as one dimension."""
        return self.weight.detach().flatten()


def tie(model: nn.Module, spec: LayerSpec, bank_units: int, *, seed: int, rescale_gradient: bool = False) -> TiedLayer:
    """Replace the weight `spec.name` of `model` by a bank of `bank_units` units, in place.

    `rescale_gradient` divides the gradient of each bank unit by its number of uses.
    """
    path, _, attribute = spec.name.rpartition(".")
    module = model.get_submodule(path)
    shared = SharedUnits(spec, bank_units, seed, module.get_parameter(attribute).device)
    parametrize.register_parametrization(module, attribute, shared)
    bank = module.get_parameter(f"parametrizations.{attribute}.original")
    if rescale_gradient:
        divisor = shared.uses().view(-1, *[1] * (bank.dim() - 1))
        bank.register_hook(lambda gradient: gradient / divisor)
    return TiedLayer(spec, bank)
