"""Units of least cost, in each layer or of all layers together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec
from dynsparse.masks.joint import joint_counts
from dynsparse.masks.magnitude import cheapest_units
from dynsparse.masks.obstacles import listed


def unit_means(spec: LayerSpec, values: Tensor) -> Tensor:
    """Mean over each unit of a layer, float [units], of values that have the shape of its parameter."""
    rows = values[spec.rows].reshape(spec.units, spec.unit_size)
    return rows.view(-1) if spec.unit_size == 1 else rows.mean(1)


def chosen_units(
    specs: Sequence[LayerSpec], costs: Sequence[Tensor], counts: Sequence[int], scope: str, most: Sequence[int]
) -> Sequence[Tensor]:
    """Return the units of least cost, float [units]: int64, rising, in each layer, made when they are asked for.

    `counts[i]` in layer i; with the scope "global" as many weights in all, one unit at least and `most[i]` at most in
    layer i. Equal costs go to the first layers and the lower indices.

    Example: two units in all. Of the costs 1 4 and 2 3 these are 1 and 2, unit 0 of each. Of the costs 1 2 and 9 8 the
    second layer keeps its 8, and so the first one keeps 1: units 0 and 1.
    """
    if scope == "global":
        sizes = [spec.unit_size for spec in specs]
        weights = sum(count * size for count, size in zip(counts, sizes, strict=True))
        counts = joint_counts(costs, sizes, weights, [1] * len(specs), most)
    return cheapest_units(specs, costs, counts)


def require_telling(specs: Sequence[LayerSpec], costs: Sequence[Tensor], key: str) -> None:
    """Raise UserError for costs that are NaN or inf, and for layers whose costs are all 0. `key`: for messages."""
    found = torch.stack([torch.stack((~one.isfinite().all(), (one == 0).all())) for one in costs]).tolist()
    if broken := [spec.name for spec, (bad, _) in zip(specs, found, strict=True) if bad]:
        raise UserError(
            f"{key}: the scores of {listed(broken)} are NaN or inf: take other first weights or batches, or exclude it"
        )
    if silent := [spec.name for spec, (_, zero) in zip(specs, found, strict=True) if zero]:
        raise UserError(
            f"{key}: all scores of {listed(silent)} are 0, as before a norm that begins with a weight of 0 "
            f"(zero_init_residual): let it begin with another, or exclude the layer"
        )
