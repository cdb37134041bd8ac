"""Patterns that a mask must have: as many active units in each of equal groups, whatever rule moves them.

`free` has none. `fan_in`: each output has as many inputs as every other (constant fan-in). `N:M`: of M consecutive
inputs N are active, for each output and kernel position. `N:M transposable`: of M consecutive outputs as well, for each
input (`transposable`); a method asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks.granularity import LayerSpec
from dynsparse.masks.transposable import Blocks, best_patterns
from dynsparse.seeds import random_bits

FREE = "free"
FAN_IN = "fan_in"
TRANSPOSABLE = " transposable"
_N_OF_M = re.compile(r"([1-9]\d?):([1-9]\d?)")


def _known(pattern: str) -> str:
    if pattern in (FREE, FAN_IN):
        return pattern
    found = _N_OF_M.fullmatch(pattern)
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(f"is '{pattern}'; it must be free, fan_in, or N:M with N below M, such as 2:4")
    return pattern


Structure = Annotated[str, Field(max_length=10), AfterValidator(_known)]
"""Pattern by its name in a config."""


def n_of_m(pattern: str) -> tuple[int, int] | None:
    """Return N and M of an N:M pattern; None for others."""
    found = _N_OF_M.fullmatch(pattern.removesuffix(TRANSPOSABLE))
    return None if found is None else (int(found[1]), int(found[2]))


def blocks_of(spec: LayerSpec) -> Blocks | None:
    """Return the blocks of a layer whose mask is transposable; None for others."""
    found = n_of_m(spec.structure)
    if found is None or not spec.structure.endswith(TRANSPOSABLE):
        return None
    outputs = 0 if spec.outputs_first else 1
    return Blocks(spec.shape[: spec.mask_dims], outputs, 1 - outputs, found[1])


@dataclass(frozen=True)
class Groups:
    """Equal groups of a layer's units.

    Example: of a linear layer (2, 8) under 2:4 unit 5 is in group 1, and unit 8 in group 2. Under `fan_in` both are in
    the group of their row.
    """

    shape: tuple[int, ...]
    """Shape of the units."""
    first: int | None
    """Dimension whose entries are the groups; None: groups are runs along the inputs."""
    inputs: int
    size: int

    @property
    def count(self) -> int:
        """Number of groups."""
        return _product(self.shape) // self.size

    def of(self, values: Tensor) -> Tensor:
        """Arrange values of all units, [units], by group: [groups, size]."""
        return self._moved(values.view(self.shape)).reshape(-1, self.size)

    def units(self, values: Tensor) -> Tensor:
        """Arrange values by group, [groups, size], as those of all units: [units]."""
        to, come = (0, self.first) if self.first is not None else (-1, self.inputs)
        moved = self._moved(torch.empty(self.shape, device="meta")).shape
        return values.reshape(moved).movedim(to, come).reshape(-1)

    def _moved(self, values: Tensor) -> Tensor:
        return values.movedim(self.inputs, -1) if self.first is None else values.movedim(self.first, 0)


def groups_of(spec: LayerSpec) -> Groups | None:
    """Return the groups that a layer's mask has; None where it is free."""
    if spec.structure == FREE:
        return None
    shape, outputs = spec.shape[: spec.mask_dims], 0 if spec.outputs_first else 1
    found = n_of_m(spec.structure)
    if found is None:
        return Groups(shape, outputs, 1 - outputs, _product(shape) // shape[outputs])
    return Groups(shape, None, 1 - outputs, found[1])


def require_structure(specs: Sequence[LayerSpec], sparsity: dict[Any, float], allocation: str = "uniform") -> None:
    """Raise UserError for layers that cannot have their structure, and for numbers of weights that contradict it."""
    for spec in specs:
        if spec.structure != FREE and (reason := _obstacle(spec)):
            raise UserError(
                f"sparsity.structure is {spec.structure}, and {spec.name} of shape {tuple(spec.shape)} {reason}: "
                f"exclude it (sparsity.exclude), or take another structure"
            )
        if (found := n_of_m(spec.structure)) and (share := sparsity.get(spec.kind, 0.0)):
            n, m = found
            if abs(share - (1 - n / m)) > 1e-9:
                raise UserError(
                    f"sparsity.{spec.kind} is {share:g}, and sparsity.structure {spec.structure} makes it "
                    f"{1 - n / m:g}: set it to that"
                )
            if allocation != "uniform":
                raise UserError(
                    f"sparsity.allocation is {allocation}, and sparsity.structure {spec.structure} makes all layers "
                    f"equally sparse: leave it uniform"
                )


def _obstacle(spec: LayerSpec) -> str | None:
    if spec.mask_dims < 2:
        return "has whole filters as units, which have no inputs of their own"
    found = n_of_m(spec.structure)
    if found is None:
        return None
    if spec.unit_size > 1:
        return f"has units of {spec.unit_size} weights, where N:M is of single ones (sparsity.granularity 4)"
    outputs, inputs = spec.shape[:2] if spec.outputs_first else spec.shape[1::-1]
    if inputs % found[1]:
        return f"has {inputs} inputs, which {found[1]} does not divide"
    if spec.structure.endswith(TRANSPOSABLE) and outputs % found[1]:
        return f"has {outputs} outputs, which {found[1]} does not divide"
    return None


def misfit(spec: LayerSpec, active: Tensor, *, exact: bool = False, may_empty: bool = False) -> str | None:
    """Say how active units (int64, distinct) miss the structure of their layer; None where they have it.

    All groups have as many; with `exact`, those of N:M have N, and not another number, as while a density changes. With
    `may_empty` an output may have no inputs at all. One copy to the host, linear in the units.

    Example: 2:4 with the units 0, 1 and 4 of a row of 8. "is not 2:4: groups of 4 inputs have 1 to 2 active units,
    where each needs as many".
    """
    found, alike = n_of_m(spec.structure), _alike(spec)
    counts = [] if active.numel() == spec.units and not exact else [_counts(groups, spec, active) for groups in alike]
    if may_empty and found is None:
        counts = [one.masked_fill(one == 0, int(one.max())) for one in counts]
    bounds = torch.stack([torch.stack(one.aminmax()) for one in counts]).tolist() if counts else []
    wanted = found[0] if exact and found is not None else None
    for (least, most), words in zip(bounds, alike.values(), strict=False):
        if least != most or (wanted is not None and most != wanted):
            return (
                f"is not {spec.structure}: {words} have {least if least == most else f'{least} to {most}'} active "
                f"units, where each needs {'as many' if wanted is None else wanted}"
            )
    return None


def _alike(spec: LayerSpec) -> dict[Groups, str]:
    """Groups of a layer that have as many active units, with a word for them; none where it is free."""
    groups, found, blocks = groups_of(spec), n_of_m(spec.structure), blocks_of(spec)
    if groups is None:
        return {}
    words = {groups: "outputs" if found is None else f"groups of {found[1]} inputs"}
    if blocks is not None:
        words[Groups(blocks.shape, None, blocks.outputs, blocks.size)] = f"groups of {blocks.size} outputs"
    return words


def _counts(groups: Groups, spec: LayerSpec, active: Tensor) -> Tensor:
    """Count the active units of each group: int64 [groups]."""
    flags = torch.zeros(spec.units, dtype=torch.bool, device=active.device)
    return groups.of(flags.index_fill_(0, active, True)).sum(1)


def fitted(spec: LayerSpec, units: int) -> int:
    """Return the nearest number of active units that the groups of a layer can share equally; at least one each."""
    groups = groups_of(spec)
    if groups is None:
        return units
    return groups.count * min(groups.size, max(1, round(units / groups.count)))


def drawn(spec: LayerSpec, units: int, seed: int) -> Tensor:
    """Draw so many active units at random, as many in each group: int64, rising, on the CPU."""
    return lowest(spec, random_bits(seed, torch.arange(spec.units)), units)


def lowest(spec: LayerSpec, costs: Tensor, units: int) -> Tensor:
    """Return the units of least cost, [units], as many in each group: int64, rising.

    Of a transposable mask those of the least sum in each block: see `best_patterns`.
    """
    groups = groups_of(spec)
    assert groups is not None and units % groups.count == 0, (spec, units)
    if blocks_of(spec) is not None:
        return torch.nonzero(largest_pattern(spec, -costs)).squeeze(1)
    flags = in_groups(groups.of(costs), torch.full((groups.count,), units // groups.count, device=costs.device))
    return torch.nonzero(groups.units(flags)).squeeze(1)


def largest_pattern(spec: LayerSpec, values: Tensor, now: Tensor | None = None) -> Tensor:
    """Mark the units that a transposable mask keeps of these values, [units], by their sums: bool [units].

    `now`, bool [units], marks patterns that stay where none has a larger sum.
    """
    blocks, found = blocks_of(spec), n_of_m(spec.structure)
    assert blocks is not None and found is not None, spec
    return blocks.units(best_patterns(blocks.of(values), *found, None if now is None else blocks.of(now)))


def in_groups(costs: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts[i]` lowest costs of group i: bool [groups, size]."""
    return ranks_in_groups(costs) < counts[:, None]


def ranks_in_groups(costs: Tensor) -> Tensor:
    """Rank each entry within its group, [groups, size], from 0 for the lowest; ties by index, NaN last."""
    order = costs.argsort(dim=1, stable=True)
    places = torch.arange(costs.shape[1], device=costs.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def _product(numbers: Sequence[int]) -> int:
    return int(torch.Size(numbers).numel())
