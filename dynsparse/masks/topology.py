"""Scores of links from a layer's mask alone, and of weights among those of the same outputs and inputs.

A layer is a bipartite network: its outputs on one side, its inputs on the other, and active units are the links. A unit
of a convolution links a filter with an input at a place of the kernel. All numbers here are the same bits on every
device, for they are sums of integers, and ratios that IEEE 754 rounds in one way.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from dynsparse.masks.granularity import LayerSpec
from dynsparse.masks.layer import SparseLayer

_ENTRIES = 1 << 22
"""Most entries of a block of rows: 32 MiB of float64."""
_MOST_ROWS = 2048
"""Most rows of a block, so that all pairs of the rows of two blocks take 32 MiB too."""
_FINE = float(1 << 30)
"""Parts of the largest weight in which weights are summed."""


def link_scores(layer: SparseLayer) -> Tensor:
    """Return the CH2-L3n score of each unit, float32 [units]: how likely a link it is, by the links that are there.

    It takes 9 bytes a unit, and 128 MiB at most beside them.
    """
    spec = layer.spec
    outputs, shape = _output_dimension(spec), spec.shape[: spec.mask_dims]
    links = (~layer.inactive).view(shape).movedim(outputs, 0)
    scores = ch2_l3n(links.reshape(shape[outputs], -1)).float()
    return scores.view(links.shape).movedim(0, outputs).reshape(-1)


def ch2_l3n(links: Tensor) -> Tensor:
    """Return the CH2-L3n score of each pair of an output and an input, float64 [outputs, inputs], given their links.

    The score of u and v sums up the nodes z between them: the neighbours of v on u's side, and of u on v's side. Let c
    be the number of neighbours that z shares with the end on its own side. If there are any, z gives (c + 1) / (1 + e),
    where e are the links of z to others, but for the one to the other end.

    Example: output 0 has the inputs 0 and 1, output 1 has 1 and 2. Between output 0 and input 2 lie output 1 and input
    1. Each shares one neighbour and has no link to others: 2 + 2 = 4.

    Exact up to 2^-bits a node: terms are cut to so many bits behind the point, so that no sum exceeds 2^53.
    """
    a, b = links.shape
    bits = 52 - (a * (b + 1) + b * (a + 1)).bit_length()
    total = torch.zeros(a, b, dtype=torch.float64, device=links.device)
    _add_nodes(total, links, 2.0**bits)
    _add_nodes(total.T, links.T, 2.0**bits)
    return total.mul_(2.0**-bits)


def _add_nodes(total: Tensor, links: Tensor, unit: float) -> None:
    """Add the terms of the nodes on the side of the rows, in parts of 1 / unit: whole numbers, in any order."""
    degrees = links.sum(1).double()
    for ends in _blocks(links):
        mine = links[ends].double()
        for nodes in _blocks(links):
            theirs = links[nodes].double()
            shared = mine @ theirs.T
            others = (degrees[nodes] - shared).clamp_(min=1)
            terms = ((shared + 1) / others).masked_fill_(shared == 0, 0)
            total[ends] += terms.mul_(unit).floor_() @ theirs


def _blocks(links: Tensor) -> Iterator[slice]:
    """Yield blocks of rows, each small enough."""
    rows = max(1, min(_MOST_ROWS, _ENTRIES // max(1, links.shape[1])))
    return (slice(first, first + rows) for first in range(0, links.shape[0], rows))


def relative_importance(layer: SparseLayer, magnitudes: Tensor) -> Tensor:
    """Return |w| over the sum of its output plus |w| over the sum of its input, float32 [active units].

    `magnitudes` are those of the active units. Linear in their number. A NaN stays one, and counts 0 in sums.

    Example: of a linear layer (2, 2) the weights 1 and 3 of output 0 and 1 of output 1, at the inputs 0, 1 and 1. They
    give 1/4 + 1/1, 3/4 + 3/4 and 1/1 + 1/4.
    """
    largest = magnitudes.nan_to_num(0, 0, 0).max().double()
    scaled = magnitudes.double() * (_FINE / torch.where(largest > 0, largest, torch.ones_like(largest)))
    whole = scaled.nan_to_num(0, 0, 0).ceil().long()
    shares = [
        scaled
        / torch.zeros(count, dtype=torch.int64, device=whole.device).index_add_(0, ends, whole)[ends].clamp(min=1)
        for ends, count in _ends(layer)
    ]
    return (shares[0] + shares[1]).float()


def _ends(layer: SparseLayer) -> Iterator[tuple[Tensor, int]]:
    """Yield the output, then the input of each active unit, int64 [active units], with the number of all."""
    outputs, shape = _output_dimension(layer.spec), layer.spec.shape[: layer.spec.mask_dims]
    count, after = shape[outputs], prod(shape[outputs + 1 :])
    before = layer.active // after
    yield before % count, count
    yield before // count * after + layer.active % after, layer.spec.units // count


def _output_dimension(spec: LayerSpec) -> int:
    """Dimension of the units that are the outputs. Whole filters have one dimension, whichever it is."""
    return 0 if spec.outputs_first or spec.mask_dims == 1 else 1
