"""One sparse weight tensor, its mask and its index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from dynsparse.masks.bits import Bits
from dynsparse.masks.granularity import LayerSpec, RowBlock
from dynsparse.masks.made import MadeAnew
from dynsparse.masks.tensors import (
    AT_ONCE,
    bits_of,
    flat_view,
    is_dense,
    is_row_major,
    nonzero,
    on_device,
    row_pieces,
    strided,
    sum_of,
)

FEW = 0.2
"""Density up to which a processor masks through the index, which is as fast and saves a mask of a byte a weight.

A GPU reads each weight's mask: one kernel instead of three.
"""


class SparseLayer:
    """One weight tensor with its mask and the index of its active units.

    The index makes work on the active weights linear in their number. Only `MaskSet` changes which units are active.
    """

    def __init__(self, spec: LayerSpec, parameter: nn.Parameter, explored: Bits | None = None, start: int = 0) -> None:
        self.spec = spec
        self.parameter = parameter
        """The parameter that holds the weights. It is the weight itself, but for a layer that is a block of rows."""
        self.explored_units = 0
        self._explored = Bits(spec.units, parameter.device) if explored is None else explored
        self._start = start
        self._active: Tensor | None = None
        self._inactive: Tensor | None = None
        self._positions: dict[tuple[int, ...], Tensor] = {}
        self._active_in_parts: dict[int, list[int]] = {}
        self._lent: Tensor | None = None

    @property
    def name(self) -> str:
        """Parameter name of the weight in the plain model. A block of rows has the name of its part behind that."""
        return self.spec.name

    @property
    def weight(self) -> Tensor:
        """The weights: the parameter itself, or a view of its rows that has a view of the gradient as its own."""
        if self.spec.block is None:
            return self.parameter
        view = self.part(self.parameter.detach()).requires_grad_(self.parameter.requires_grad)
        view.grad = self.gradient
        return view

    @property
    def gradient(self) -> Tensor | None:
        """The weights' gradient, or a view of its rows; None where there is none."""
        if self._lent is not None:
            return self._lent
        return None if self.parameter.grad is None else self.part(self.parameter.grad)

    @contextmanager
    def with_gradient(self, gradient: Tensor) -> Iterator[None]:
        """Let the weights have another gradient meanwhile, of their shape and dtype."""
        before = self.parameter.grad
        if self.spec.block is None:
            self.parameter.grad = gradient
        else:  # The other rows of the parameter keep theirs.
            self._lent = gradient
        try:
            yield
        finally:
            self.parameter.grad, self._lent = before, None

    def part(self, tensor: Tensor) -> Tensor:
        """View the layer's rows of a tensor of the parameter's shape; the tensor itself if all are the layer's."""
        return tensor if self.spec.block is None else tensor[self.spec.rows]

    @property
    def device(self) -> torch.device:
        """Device of the mask: the weight's, unless that has moved since."""
        return self._explored.device

    @property
    def active(self) -> Tensor:
        """Index of the active units: int64, rising. It is replaced, never changed in place: snapshots refer to it."""
        if self._active is None:  # All: an index would take twice the memory of the weights.
            return torch.arange(self.spec.units, device=self.parameter.device)
        return self._active

    @property
    def inactive(self) -> Tensor:
        """Bool of `spec.mask_shape`: True where weights are held at 0.

        It is made for `masked_fill_`, which replaces a NaN too, unlike multiplying by a mask.
        """
        flags = torch.ones(self.spec.units, dtype=torch.bool, device=self.parameter.device)
        return flags.index_fill_(0, self.active, False).view(self.spec.mask_shape)

    @property
    def mask(self) -> Tensor:
        """Bool of the weight's shape: True where active."""
        return (~self.inactive).expand(self.spec.shape).clone()

    @property
    def explored(self) -> Tensor:
        """Bool [units]: True where the unit was ever active."""
        return self._explored.flags(self._start, self._start + self.spec.units)

    @explored.setter
    def explored(self, flags: Tensor) -> None:
        self._explored.set(self._start, flags)
        self.explored_units = int(flags.count_nonzero())

    def on_host(self) -> tuple[Tensor, Tensor]:
        """Copy to the host the index of the active units, int64, and flags of units that ever were: bool [units].

        Neither is made on the device.
        """
        host = torch.device("cpu")
        active = torch.arange(self.spec.units) if self._active is None else self._active.to(host)
        return active, self._explored.flags(self._start, self._start + self.spec.units, host)

    def keep_explored_in(self, explored: Bits, start: int) -> None:
        """Keep the flags of units that were ever active elsewhere: in a set, from the number `start` on."""
        flags = self.explored if self.explored_units else None
        self._explored, self._start = explored, start
        if flags is not None:
            explored.set(start, flags)

    def active_pieces(self, weights: int) -> Iterator[Tensor]:
        """Yield the active units in pieces of at most so many weights, or of one unit: int64, rising.

        Only the piece of a full layer is made, as such a layer has no index.
        """
        at_once = max(1, weights // self.spec.unit_size)
        for first in range(0, max(1, self.active_units), at_once):  # One that is empty, of none.
            last = min(first + at_once, self.active_units)
            if self._active is None:
                yield torch.arange(first, last, device=self.parameter.device)
            else:
                yield self._active if at_once >= self.active_units else self._active[first:last]

    def parts(self, units: int) -> Sequence[SparseLayer]:
        """Divide the layer into parts of consecutive rows: of at most so many units each, or of one row.

        A part is a layer of the same name, whose weights are views. It has a copy of its piece of the index. It is made
        when it is asked for, of the mask as it is now. See `active_in_parts` for what the host must know.
        """
        firsts, counts = self._first_rows(units), self.active_in_parts(units)
        pieces = list(zip(pairwise(firsts), pairwise(accumulate(counts, initial=0)), strict=True))
        return MadeAnew(lambda k: self._part(slice(*pieces[k][0]), slice(*pieces[k][1])), len(pieces))

    def units_in_parts(self, units: int) -> list[int]:
        """Units of each of the `parts`, active or not."""
        return [(last - first) * self._units_in_a_row for first, last in pairwise(self._first_rows(units))]

    def active_in_parts(self, units: int) -> list[int]:
        """Active units of each of the `parts`. One copy to the host, if nobody has told since the mask has moved."""
        if units not in self._active_in_parts:
            bounds = [first * self._units_in_a_row for first in self._first_rows(units)]
            self._active_in_parts[units] = [b - a for a, b in pairwise(self._active_below(bounds))]
        return self._active_in_parts[units]

    def tell_active_in_parts(self, units: int, active: Sequence[int]) -> None:
        """Tell how many active units each of the `parts` has, so that no device is asked."""
        self._active_in_parts[units] = list(active)

    @property
    def _units_in_a_row(self) -> int:
        return self.spec.units // self.spec.shape[0]

    def _first_rows(self, units: int) -> list[int]:
        """First row of each part of at most so many units, and the number of all rows."""
        rows = self.spec.shape[0]
        return [*range(0, rows, max(1, units // self._units_in_a_row)), rows]

    @property
    def divides(self) -> bool:
        """Whether parts of the rows lie in memory without gaps. Those of a weight that lies column by column do not."""
        return is_dense(self.parameter.detach()[:1])

    def _active_below(self, bounds: Sequence[int]) -> Sequence[int]:
        """Count the active units below each bound."""
        if self._active is None:
            return list(bounds)
        return [int(n) for n in torch.searchsorted(self._active, on_device(bounds, self._active.device)).tolist()]

    def _part(self, rows: slice, active: slice) -> SparseLayer:
        """Make a part of the layer, given its rows and the places of its active units in the index."""
        spec = self.spec
        block = RowBlock(spec.parameter, spec.rows.start + rows.start, spec.parameter_shape[0])
        shape, first = (rows.stop - rows.start, *spec.shape[1:]), rows.start * self._units_in_a_row
        part = SparseLayer(replace(spec, shape=shape, block=block), self.parameter, self._explored, self._start + first)
        if self._active is not None:
            part.activate(self._active[active] - first)
        part._lent = None if self._lent is None else self._lent[rows]
        return part

    @property
    def active_units(self) -> int:
        """Number of active units."""
        return self.spec.units if self._active is None else self._active.numel()

    @property
    def active_weights(self) -> int:
        """Number of active weights."""
        return self.active_units * self.spec.unit_size

    @property
    def is_full(self) -> bool:
        """Whether all units are active. Then there is no index, and masking does nothing."""
        return self.active_units == self.spec.units

    @property
    def sparsity(self) -> float:
        """Fraction of the layer's weights that are inactive."""
        return 1 - self.active_weights / self.spec.weights

    def gather(self, tensor: Tensor) -> Tensor:
        """Copy the entries of a weight-shaped tensor (weight, gradient, momentum) at the active weights.

        Shape [active units, unit size], in logical order whatever the memory format.
        """
        if self.is_full:
            return tensor.detach().clone(memory_format=torch.contiguous_format).view(-1, self.spec.unit_size)
        return flat_view(tensor).index_select(0, self.positions(tensor)).view(-1, self.spec.unit_size)

    def values(self) -> Tensor:
        """Copy the active weights as one dimension, in logical order."""
        return self.gather(self.weight).flatten()

    def values_in_pieces(self, tensor: Tensor) -> Iterator[Tensor]:
        """Yield what `gather` copies, as one dimension, in pieces of bounded size."""
        if self.is_full:
            yield from row_pieces(tensor)
        else:
            flat = flat_view(tensor)
            yield from (flat.index_select(0, piece) for piece in self.positions(tensor).split(AT_ONCE))

    def scatter_(self, tensor: Tensor, values: Tensor) -> None:
        """Write values [active units, unit size] to the active entries of a weight-shaped tensor, in place."""
        if self.is_full:
            tensor.detach().copy_(values.view(self.spec.shape))
        else:
            flat_view(tensor)[self.positions(tensor)] = values.reshape(-1).to(tensor.dtype)

    def mask_(self, tensor: Tensor) -> None:
        """Set a weight-shaped tensor to 0 outside the mask, in place. A NaN becomes 0 too."""
        if self.is_full:
            return
        if tensor.is_cuda or self.active_weights > FEW * self.spec.weights:
            if self._inactive is None:
                self._inactive = self.inactive
            tensor.masked_fill_(self._inactive, 0)
            return
        flat, positions = flat_view(tensor), self.positions(tensor)
        values = flat.index_select(0, positions)
        flat.zero_().index_copy_(0, positions, values)

    def stray_bits(self) -> Tensor:
        """Sum the bits of the weights outside the mask, wrapping: an int64 scalar on the device.

        It is 0 where all of them are 0. A single stray weight makes it differ for certain. Several may cancel, which
        happens to one in four billion at random. One pass over all weights, many times as fast as counting strays.
        """
        if self.is_full:
            return torch.zeros((), dtype=torch.int64, device=self.parameter.device)
        stray = sum_of(bits_of(flat_view(self.weight)))
        for piece in self.values_in_pieces(self.weight):
            stray = stray - sum_of(bits_of(piece))
        return stray.to(torch.int64)

    def strays(self) -> Tensor:
        """Count the weights outside the mask that are not 0, NaN among them: int64 scalar. A pass over all weights."""
        if self.is_full:
            return torch.zeros((), dtype=torch.int64, device=self.parameter.device)
        stray = nonzero(flat_view(self.weight))
        for piece in self.values_in_pieces(self.weight):
            stray = stray - nonzero(piece)
        return stray

    def at(self, tensor: Tensor, units: Tensor) -> Tensor:
        """Copy the entries of a weight-shaped tensor at `units` (int64 [k]): [k, unit size], in logical order."""
        return flat_view(tensor).index_select(0, self._places(units, tensor)).view(-1, self.spec.unit_size)

    def put_(self, tensor: Tensor, units: Tensor, values: Tensor) -> None:
        """Write values [k, unit size] to a weight-shaped tensor at `units` (int64 [k]), in place."""
        flat_view(tensor)[self._places(units, tensor)] = values.reshape(-1).to(tensor)

    def zero_(self, tensor: Tensor, units: Tensor) -> None:
        """Set a weight-shaped tensor to 0 at `units` (int64 [k]), in place."""
        flat_view(tensor).index_fill_(0, self._offsets(units, tensor.stride()), 0)

    def unit_means(self, tensor: Tensor) -> Tensor:
        """Mean of a weight-shaped tensor over each unit, active or not: float [units]."""
        rows = tensor.reshape(self.spec.units, self.spec.unit_size)
        return rows.view(-1) if self.spec.unit_size == 1 else rows.mean(1)

    def positions(self, tensor: Tensor) -> Tensor:
        """Places of the active weights in the flat memory of `tensor`: int64 [active weights]."""
        strides = tensor.stride()
        if strides not in self._positions:
            self._positions[strides] = self._offsets(self.active, strides)
        return self._positions[strides]

    def _places(self, units: Tensor, tensor: Tensor) -> Tensor:
        """Places of all weights of `units` in the flat memory of `tensor`. Those of the index itself are kept."""
        return self.positions(tensor) if units is self._active else self._offsets(units, tensor.stride())

    @property
    def held_bytes(self) -> int:
        """Bytes of all that is kept to know the mask: its index, its places in memory, its flags."""
        kept = [self._active, self._inactive, *self._positions.values()]
        distinct = {id(one): one.numel() * one.element_size() for one in kept if one is not None}
        return sum(distinct.values())

    def _offsets(self, units: Tensor, strides: Sequence[int]) -> Tensor:
        """Places of all weights of `units` (int64 [k]) in memory with these strides: int64 [k x unit size].

        Example: shape (2, 2, 3) with units of 3 in channels-last order, strides (6, 1, 2). Units 1 and 2 are (0, 1)
        and (1, 0) and begin at 1 and 6; their weights lie at +0, +2, +4. The result is 1 3 5 6 8 10.
        """
        spec = self.spec
        size = spec.unit_size
        within = torch.arange(size, device=units.device)
        if is_row_major(spec.shape, strides):
            return units if size == 1 else (units[:, None] * size + within).view(-1)
        heads = strided(units, spec.shape[: spec.mask_dims], strides[: spec.mask_dims])
        if size == 1:
            return heads
        within = strided(within, spec.shape[spec.mask_dims :], strides[spec.mask_dims :])
        return (heads[:, None] + within).view(-1)

    def to(self, device: torch.device) -> None:
        """Follow a weight that has moved to another device."""
        self._active = None if self._active is None else self._active.to(device)
        self._inactive = None
        self._positions.clear()
        self._active_in_parts.clear()

    def activate(self, active: Tensor) -> None:
        """Make `active` (int64, rising, distinct) the active units."""
        self._active = None if active.numel() == self.spec.units else active
        self._inactive = None
        self._positions.clear()
        self._active_in_parts.clear()
