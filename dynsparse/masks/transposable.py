"""Transposable N:M: blocks of M outputs by M inputs with N active in each row and in each column.

Such a mask is N:M along the inputs and, transposed, along the outputs: a GPU can multiply by it in the forward pass and
in the backward pass. Which pattern of a block keeps the most is the question of Hubara et al., "Accelerated sparse
neural training: a provable and efficient method to find N:M transposable masks", NeurIPS 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
from torch import Tensor

from dynsparse.masks.tensors import on_device

_ALL_UP_TO = 4
"""M up to which all patterns are scored: 90 for 2:4."""
_ENTRIES = 1 << 22
"""Most scores at a time: 32 MiB of float64."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of `size` outputs by `size` inputs of a layer's units, at each position of the kernel.

    Example: of a linear layer (4, 4) in blocks of 2 the unit 9, output 2 and input 1, is the second of the third block.
    """

    shape: tuple[int, ...]
    """Shape of the units."""
    outputs: int
    inputs: int
    size: int

    def of(self, values: Tensor) -> Tensor:
        """Arrange values of all units, [units], by block: [blocks, size x size], an output a row."""
        moved = values.view(self.shape).movedim((self.outputs, self.inputs), (-2, -1))
        return self._split(moved).transpose(2, 3).reshape(-1, self.size * self.size)

    def units(self, values: Tensor) -> Tensor:
        """Arrange values by block, [blocks, size x size], as those of all units: [units]."""
        outputs, inputs = self.shape[self.outputs], self.shape[self.inputs]
        rest = [n for d, n in enumerate(self.shape) if d not in (self.outputs, self.inputs)]
        tiles = values.reshape(-1, outputs // self.size, inputs // self.size, self.size, self.size)
        whole = tiles.transpose(2, 3).reshape(*rest, outputs, inputs)
        return whole.movedim((-2, -1), (self.outputs, self.inputs)).reshape(-1)

    def _split(self, moved: Tensor) -> Tensor:
        outputs, inputs = moved.shape[-2] // self.size, moved.shape[-1] // self.size
        return moved.reshape(-1, outputs, self.size, inputs, self.size)


def best_patterns(values: Tensor, n: int, m: int, now: Tensor | None = None) -> Tensor:
    """Mark N of M in each row and column of each block, of large sum: bool [blocks, M x M], as `values`, which tell.

    Up to M = 4 the sum is the largest there is: all patterns are scored, 90 for 2:4, 24 for 1:4. Above, a greedy choice
    holds at least N / M of the sum of all the block's values. Where none is negative, and N is M / 2 or more, that is
    half of the best. `now`, bool, marks patterns that stay where none is found with a larger sum.

    The same on every device: values are whole numbers of 2^-40 or less of the block's range, so that sums are exact.
    Ties go to the pattern that comes first. NaN counts as 0.

    Example, 1:2: of the block [3 2, 2 0] the diagonals have the sums 3 and 4; the second one is marked.
    """
    whole = _whole(values, n * m)
    best = _largest(whole, n, m) if m <= _ALL_UP_TO else _greedy(whole, n, m)
    if now is None:
        return best
    stays = _is_pattern(now, n, m) & (_sums(whole, now) >= _sums(whole, best))
    return torch.where(stays[:, None], now, best)


def _whole(values: Tensor, kept: int) -> Tensor:
    """Return whole numbers in proportion to how far values lie above their block's least, float64: sums stay exact."""
    exact = (values.nan_to_num() if values.is_floating_point() else values).double()
    above = exact - exact.amin(1, keepdim=True)
    largest = above.amax(1, keepdim=True)
    parts = 2.0 ** (52 - kept.bit_length())
    return (above / torch.where(largest > 0, largest, torch.ones_like(largest)) * parts).round()


def _sums(whole: Tensor, marks: Tensor) -> Tensor:
    return (whole * marks).sum(1)


def _is_pattern(marks: Tensor, n: int, m: int) -> Tensor:
    """Whether each block has N in each row and column: bool [blocks]."""
    tiles = marks.view(-1, m, m)
    return (tiles.sum(2) == n).all(1) & (tiles.sum(1) == n).all(1)


def _largest(whole: Tensor, n: int, m: int) -> Tensor:
    """Score all patterns, and take the best."""
    table = patterns(n, m, whole.device)
    rows = max(1, _ENTRIES // len(table))
    return torch.cat([table[(part @ table.T).argmax(1)] > 0 for part in whole.split(rows)])


@cache
def patterns(n: int, m: int, device: torch.device) -> Tensor:
    """All patterns of a block: float64 [patterns, M x M] of 0 and 1, in the order of their rows' choices."""
    rows = [sum(1 << column for column in columns) for columns in combinations(range(m), n)]
    flags = [[row >> column & 1 for row in chosen for column in range(m)] for chosen in _rows(rows, n, m)]
    return on_device(flags, device).double()


def _rows(rows: list[int], n: int, m: int) -> list[tuple[int, ...]]:
    """Choose a row after the other, bits for its columns, of which none has more than N in the end."""
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), (0,) * m)]
    for _ in range(m):
        found = [
            ((*chosen, row), after)
            for chosen, counts in found
            for row in rows
            if max(after := tuple(count + (row >> column & 1) for column, count in enumerate(counts))) <= n
        ]
    return [chosen for chosen, _ in found]


def _greedy(whole: Tensor, n: int, m: int) -> Tensor:
    """Take the largest values first, each where its row and its column have fewer than N; then complete.

    Values are not negative. A full pattern of diagonals replaces what has a smaller sum: the N best of M diagonals
    (wrapped) hold N / M of all values at least, and the completion could cost what the greedy choice has won.
    """
    greedy = _completed(_first_fit(whole, n, m), whole, n, m)
    diagonals = _diagonals(whole, n, m)
    return torch.where((_sums(whole, greedy) >= _sums(whole, diagonals))[:, None], greedy, diagonals)


def _first_fit(whole: Tensor, n: int, m: int) -> Tensor:
    """Go through the values of a block from the largest on, all blocks at once: bool [blocks, M x M]."""
    taken = torch.zeros_like(whole, dtype=torch.bool)
    rows, columns = (torch.zeros(len(whole), m, dtype=torch.int64, device=whole.device) for _ in range(2))
    for place in whole.argsort(dim=1, descending=True, stable=True).split(1, dim=1):
        row, column = place // m, place % m
        fits = (rows.gather(1, row) < n) & (columns.gather(1, column) < n)
        taken.scatter_(1, place, fits)
        rows.scatter_add_(1, row, fits.long())
        columns.scatter_add_(1, column, fits.long())
    return taken


def _completed(taken: Tensor, whole: Tensor, n: int, m: int) -> Tensor:
    """Give rows and columns that were left with fewer than N what they lack.

    Let row r and column c lack one. Their common place is taken already, as all such places are. A taken place (r', c')
    leaves, and (r, c') and (r', c) come, of all that allow it the exchange that wins most. There is one: columns in
    which r is free are full, and column c fills fewer than N rows. At most N^2 / 4 are lacking.
    """
    values = whole.view(-1, m, m)
    for _ in range(n * n // 4):
        there = taken.view(-1, m, m)
        lacks_row, lacks_column = there.sum(2) < n, there.sum(1) < n
        row, column = lacks_row.int().argmax(1), lacks_column.int().argmax(1)
        of_row, of_column = row[:, None, None].expand(-1, 1, m), column[:, None, None].expand(-1, m, 1)
        allowed = there & ~there.gather(1, of_row) & ~there.gather(2, of_column)
        won = values.gather(1, of_row) + values.gather(2, of_column) - values
        leaves = won.masked_fill(~allowed, -torch.inf).view(-1, m * m).argmax(1)
        changed = torch.stack((leaves, row * m + leaves % m, leaves // m * m + column), dim=1)
        is_short = lacks_row.any(1, keepdim=True).expand(-1, 3)
        taken = taken ^ torch.zeros_like(taken).scatter_(1, changed, is_short)
    return taken


def _diagonals(whole: Tensor, n: int, m: int) -> Tensor:
    """Mark the N wrapped diagonals of largest sum: bool [blocks, M x M]."""
    rows = torch.arange(m, device=whole.device)
    of = (rows[None, :] - rows[:, None]).remainder(m).view(-1)
    sums = torch.zeros(len(whole), m, dtype=whole.dtype, device=whole.device).index_add_(1, of, whole)
    order = sums.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(sums, dtype=torch.bool).scatter_(1, order[:, :n], True).index_select(1, of)
