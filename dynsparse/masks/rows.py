"""Parameters of which parts are sparse layers: attention's packed query, key and value, or some of these.

A layer that is a block of rows sees only its own rows: weights, gradients and moments are views. What concerns a
parameter as a whole, such as a checkpoint, a checksum or a message between ranks, takes it in pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from dynsparse.masks.layer import SparseLayer
from dynsparse.masks.tensors import flat_view, row_pieces


def by_parameter(layers: Iterable[SparseLayer]) -> dict[str, list[SparseLayer]]:
    """The layers in each parameter that has any, by the parameter's name, in the order of their rows."""
    found: dict[str, list[SparseLayer]] = {}
    for layer in layers:
        found.setdefault(layer.spec.parameter, []).append(layer)
    return {name: sorted(parts, key=lambda layer: layer.spec.rows.start) for name, parts in found.items()}


def pieces(parameter: Tensor, layers: Sequence[SparseLayer]) -> Iterator[tuple[slice, SparseLayer | None]]:
    """Yield the blocks of rows that a parameter is made of, with the layer of each; None for rows that are dense.

    Example: 96 rows, of which the last 64 are the layers k and v, give 0..31 (None), 32..63 (k) and 64..95 (v).
    """
    at = 0
    for layer in layers:
        rows = layer.spec.rows
        if at < rows.start:
            yield slice(at, rows.start), None
        yield rows, layer
        at = rows.stop
    if at < len(parameter):
        yield slice(at, len(parameter)), None


def kept_values(tensor: Tensor, layers: Sequence[SparseLayer]) -> Tensor:
    """Copy what a parameter-shaped tensor holds at active weights and in dense rows, piece by piece: 1 dimension."""
    return torch.cat(
        [
            (tensor[rows] if layer is None else layer.gather(tensor[rows])).detach().flatten()
            for rows, layer in pieces(tensor, layers)
        ]
    )


def kept_in_pieces(tensor: Tensor, layers: Sequence[SparseLayer]) -> Iterator[Tensor]:
    """Yield what `kept_values` copies in pieces of bounded size: 1 dimension each."""
    for rows, layer in pieces(tensor, layers):
        yield from row_pieces(tensor[rows]) if layer is None else layer.values_in_pieces(tensor[rows])


@torch.no_grad()
def put_values(tensor: Tensor, layers: Sequence[SparseLayer], values: Tensor) -> None:
    """Write what `kept_values` gave to a parameter-shaped tensor, in place. Nothing else is written."""
    found = list(pieces(tensor, layers))
    sizes = [tensor[rows].numel() if layer is None else layer.active_weights for rows, layer in found]
    for (rows, layer), part in zip(found, values.to(tensor).split(sizes), strict=True):
        if layer is None:
            tensor[rows].copy_(part.view_as(tensor[rows]))
        else:
            layer.scatter_(tensor[rows], part.view(-1, layer.spec.unit_size))


def memory_of(
    gradient: Tensor, parameter: Tensor, layers: Sequence[SparseLayer]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the flat memory of each piece of a gradient, with the positions of active weights in it. None: all.

    The gradient's memory is as the parameter's, whatever its own strides say: see `ActiveAllReduce`.
    """
    flat = flat_view(gradient)
    if not layers:
        yield flat, None
        return
    size = flat.numel() // len(parameter)
    for rows, layer in pieces(parameter, layers):
        index = None if layer is None or layer.is_full else layer.positions(parameter[rows])
        yield flat[rows.start * size : rows.stop * size], index


def whole_mask(parameter: Tensor, layers: Sequence[SparseLayer]) -> Tensor:
    """Bool of the parameter's shape: True where weights are active, and in rows that are dense."""
    mask = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
    for layer in layers:
        layer.part(mask).copy_(layer.mask)
    return mask
