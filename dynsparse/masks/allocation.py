"""The number of weights of each layer: initial densities (uniform, ERK) and the division of a freed budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from dynsparse.errors import UserError
from dynsparse.masks.granularity import Kind, LayerSpec
from dynsparse.masks.structure import fitted


def uniform(layers: Sequence[LayerSpec], sparsity: dict[Kind, float]) -> dict[str, int]:
    """Active units of each layer where all layers of a kind get the same density.

    Rounded to the nearest unit, at least one: a layer without weights passes no signal. UserError for a sparsity
    outside [0, 1).
    """
    for kind, value in sparsity.items():
        if not 0 <= value < 1:
            raise UserError(f"sparsity.{kind} is {value}; it must be at least 0 and below 1")
    return {
        layer.name: max(1, round(Fraction(layer.units) * (1 - Fraction(str(sparsity[layer.kind]))))) for layer in layers
    }


def erk(layers: Sequence[LayerSpec], sparsity: dict[Kind, float]) -> dict[str, int]:
    """Active units of each layer by the Erdos-Renyi-kernel rule (Evci et al. 2020, after Mocanu et al. 2018).

    As many weights in all as `uniform` gives. They are divided in proportion to the sum of each layer's dimensions
    (inputs + outputs + kernel height + width), so that small layers are denser. The surplus of a full layer goes to
    the others. At least one unit each.
    """
    total = sum(
        count * layer.unit_size for count, layer in zip(uniform(layers, sparsity).values(), layers, strict=True)
    )
    units = share_out(
        total,
        [Fraction(sum(layer.shape)) for layer in layers],
        capacity=[layer.units for layer in layers],
        unit_size=[layer.unit_size for layer in layers],
    )
    return {layer.name: max(1, count) for layer, count in zip(layers, units, strict=True)}


ALLOCATIONS: dict[str, Callable[[Sequence[LayerSpec], dict[Kind, float]], dict[str, int]]] = {
    "erk": erk,
    "uniform": uniform,
}
"""Rules by their names in a config."""


def allocated(rule: str, layers: Sequence[LayerSpec], sparsity: Mapping[Kind, float]) -> dict[str, int]:
    """Active units of each layer by a rule of ALLOCATIONS, rounded to what their structures can have."""
    counts = ALLOCATIONS[rule](layers, dict(sparsity))
    return {layer.name: fitted(layer, counts[layer.name]) for layer in layers}


def share_out(
    total: int, shares: Sequence[float | Fraction], capacity: Sequence[int], unit_size: Sequence[int]
) -> list[int]:
    """Divide `total` weights over layers in proportion to `shares`, in whole units.

    `capacity` is the most units a layer can take, `unit_size` the weights in one. Returns units for each layer.

    The surplus of a full layer goes to the others in their proportions. Fractions of units are rounded by largest
    remainder, ties to the first layer. If no layer with a share has room left, the rest goes to the others in
    proportion to their room. The sum falls short of `total` by less than one unit, and by nothing where all units are
    of one weight, unless all layers are full. Exact (no floating point), and at most one round a layer.

    Example: 10 weights by shares [3, 1, 1], where the first layer has room for 4. The quota 6, 2, 2 overfills it; it
    takes 4, and the 6 that are left go out as 3 and 3.
    """
    assert total >= 0 and min(capacity, default=0) >= 0, (total, capacity)
    weights = [Fraction(share) for share in shares]
    assert min(weights, default=Fraction(0)) >= 0, shares
    given = _proportional(total, weights, capacity, unit_size)
    left = total - sum(units * size for units, size in zip(given, unit_size, strict=True))
    room = [full - units for full, units in zip(capacity, given, strict=True)]
    if any(left >= size and free for size, free in zip(unit_size, room, strict=True)):
        by_room = [Fraction(free * size) for free, size in zip(room, unit_size, strict=True)]
        more = _proportional(left, by_room, room, unit_size)
        given = [units + extra for units, extra in zip(given, more, strict=True)]
    return given


def _proportional(
    total: int, shares: Sequence[Fraction], capacity: Sequence[int], unit_size: Sequence[int]
) -> list[int]:
    """Divide in proportion among layers with a share, as far as they have room."""
    given = [0] * len(shares)
    left = total
    open_layers = [i for i, share in enumerate(shares) if share > 0 and capacity[i] > 0]
    while open_layers:  # Fill the layers that cannot take their quota; each round closes one or ends.
        whole = sum((shares[i] for i in open_layers), Fraction(0))
        full = [i for i in open_layers if left * shares[i] >= whole * capacity[i] * unit_size[i]]
        if not full:
            break
        for i in full:
            given[i] = capacity[i]
        left -= sum(capacity[i] * unit_size[i] for i in full)
        open_layers = [i for i in open_layers if i not in full]
    if not open_layers:
        return given

    whole = sum((shares[i] for i in open_layers), Fraction(0))
    quota = {i: left * shares[i] / whole / unit_size[i] for i in open_layers}
    for i in open_layers:
        given[i] = int(quota[i])
        left -= given[i] * unit_size[i]
    by_remainder = sorted(open_layers, key=lambda i: (int(quota[i]) - quota[i], i))
    while takers := [i for i in by_remainder if unit_size[i] <= left and given[i] < capacity[i]]:
        for i in takers:
            if unit_size[i] <= left:
                given[i] += 1
                left -= unit_size[i]
    return given
