"""First masks from trained weights: the units of largest magnitude in each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks.granularity import LayerSpec
from dynsparse.masks.made import MadeAnew
from dynsparse.masks.selection import Cut, chosen, cuts_smallest
from dynsparse.masks.structure import FREE, lowest


@torch.no_grad()
def largest_units(
    specs: Sequence[LayerSpec], counts: Mapping[str, int | Tensor], weights: Mapping[str, Tensor]
) -> dict[str, int | Tensor]:
    """Return the `counts[name]` units of largest mean |weight| in each layer: int64, rising, on the CPU.

    For a layer that keeps all its units their number is returned: their index takes twice its memory. Of equal ones
    those of lower index are taken. Means are computed on the CPU, so that they are the same whatever device holds the
    weights. UserError for weights with NaN or inf.

    Example: of the weights 1 -3 2 -2 the two largest are units 1 and 2.
    """
    found: dict[str, int | Tensor] = {}
    for spec in specs:  # One layer after the other: no more than its costs are in memory.
        count = count if isinstance(count := counts[spec.name], int) else count.numel()
        costs = _costs(spec, weights[spec.parameter][spec.rows])
        found[spec.name] = count if count == spec.units else cheapest_units([spec], [costs], [count])[0]
    return found


def cheapest_units(specs: Sequence[LayerSpec], costs: Sequence[Tensor], counts: Sequence[int]) -> Sequence[Tensor]:
    """Return the `counts[i]` units of least cost, float [units], in each layer: int64, rising, made when asked for.

    As many in each group of a layer's structure. Of equal ones those of lower index are taken.
    """
    cuts = cuts_smallest(costs, counts)
    return MadeAnew(lambda i: _taken(specs[i], costs[i], cuts[i]), len(specs))


def _taken(spec: LayerSpec, costs: Tensor, cut: Cut) -> Tensor:
    """The units of least cost, in all the layer or in each group of its structure."""
    return torch.nonzero(chosen(costs, cut)).squeeze(1) if spec.structure == FREE else lowest(spec, costs, cut.count)


def _costs(spec: LayerSpec, weight: Tensor) -> Tensor:
    """Negated mean magnitude of each unit, float [units]: the smallest are those to keep."""
    rows = weight.detach().to("cpu", torch.float32).reshape(spec.units, spec.unit_size)
    if not rows.isfinite().all():
        raise UserError(f"{spec.name} holds NaN or inf, and the masks are to follow its weights: give others")
    return -rows.abs().mean(1)
