"""Transposable N:M: the blocks of a layer, and the patterns that are found for them."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec
from dynsparse.masks.structure import blocks_of, drawn, fitted, groups_of, largest_pattern, require_structure
from dynsparse.masks.transposable import Blocks, best_patterns, patterns

CPU = torch.device("cpu")
SMALL = [(1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4)]
LARGE = [(1, 5), (2, 5), (3, 5), (2, 8), (4, 8), (6, 8), (8, 16)]
SPECS = [
    LayerSpec("linear", "fc", (8, 12), 2, structure="2:4 transposable"),
    LayerSpec("conv", "conv", (4, 8, 3, 2), 4, structure="2:4 transposable"),
    LayerSpec("to", "conv", (8, 4, 3, 3), 4, outputs_first=False, structure="2:4 transposable"),
]


def all_patterns(n: int, m: int) -> Tensor:
    """List them by brute force over the choices of each row."""
    rows = [[float(i in chosen) for i in range(m)] for chosen in combinations(range(m), n)]
    found = [block for block in product(rows, repeat=m) if all(sum(column) == n for column in zip(*block, strict=True))]
    return torch.tensor(found, dtype=torch.float64).view(-1, m * m)


def best_sum(block: Tensor, n: int, m: int) -> float:
    """Exact by a linear program: its corners are the patterns."""
    sums = [np.kron(np.eye(m), np.ones(m)), np.kron(np.ones(m), np.eye(m))]
    found = linprog(-block.double().numpy(), A_eq=np.concatenate(sums), b_eq=np.full(2 * m, n), bounds=(0, 1))
    return float(-found.fun)


def is_pattern(marks: Tensor, n: int, m: int) -> bool:
    tiles = marks.view(-1, m, m)
    return bool((tiles.sum(1) == n).all()) and bool((tiles.sum(2) == n).all())


def test_the_number_of_patterns() -> None:
    assert [len(patterns(n, m, CPU)) for n, m in SMALL] == [2, 6, 6, 24, 90, 24]
    for n, m in SMALL:
        assert torch.equal(patterns(n, m, CPU).sort(dim=0).values, all_patterns(n, m).sort(dim=0).values)


def test_worked_by_hand() -> None:
    """The rows alone would keep 9 8, 7 6, 5 4 and 3 2: the first two columns eight times.

    9 8 1 0     the sum of both blocks of 2 x 2 on the diagonal is 30 + 1 + 2, that of the
    7 6 0 1     others 14 + 2; no mixture has more
    5 4 0 0
    3 2 1 1
    """
    block = torch.tensor([[9.0, 8, 1, 0, 7, 6, 0, 1, 5, 4, 0, 0, 3, 2, 1, 1]])
    assert best_patterns(block, 2, 4).view(4, 4).int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize(("n", "m"), SMALL)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_small_patterns_are_the_best(n: int, m: int, data: st.DataObject) -> None:
    numbers = st.one_of(st.integers(0, 3).map(float), st.floats(-1e3, 1e3, width=32))
    block = torch.tensor([data.draw(st.lists(numbers, min_size=m * m, max_size=m * m))])
    found = best_patterns(block, n, m)
    assert is_pattern(found, n, m)
    best = float((all_patterns(n, m) @ block[0].double()).max())
    assert float((block.double() * found).sum()) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(("n", "m"), LARGE)
def test_the_greedy_choice_keeps_its_bound(n: int, m: int) -> None:
    """N / M of all, and half of the best. Of these weights the worst is 1:5 of small whole numbers, 6 of 8."""
    random = torch.Generator().manual_seed(m)
    blocks = torch.randn(20, m * m, generator=random).abs()
    blocks[::4] = torch.randint(0, 3, (5, m * m), generator=random).float()  # With ties.
    blocks[1::4] **= 8  # A few weights hold most of the sum.
    found = best_patterns(blocks, n, m)
    assert is_pattern(found, n, m)
    for block, marks in zip(blocks, found, strict=True):
        ours, best = float((block * marks).sum()), best_sum(block, n, m)
        assert n / m * float(block.sum()) - 1e-4 <= ours <= best * (1 + 1e-5)
        assert ours >= 0.75 * best


@pytest.mark.parametrize(("n", "m"), [(2, 5), (3, 6), (4, 8)])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_greedy_choice_leaves_is_completed(n: int, m: int, data: st.DataObject) -> None:
    block = torch.tensor([data.draw(st.lists(st.integers(0, 4), min_size=m * m, max_size=m * m))]).float()
    found = best_patterns(block, n, m)
    assert is_pattern(found, n, m)
    assert float((block * found).sum()) >= n / m * float(block.sum()) - 1e-4


def test_a_block_that_greed_alone_would_not_fill() -> None:
    """2:5 by hand: the first four rows and columns take two of each other, and (4, 4) is left with one."""
    block = torch.zeros(5, 5)
    for row in range(4):
        block[row, row] = block[row, (row + 1) % 4] = 2.0
    block[4, 4] = 1.0
    found = best_patterns(block.view(1, -1), 2, 5)
    assert is_pattern(found, 2, 5)
    assert float((block.view(-1) * found[0]).sum()) == 15, "one place of 2 made room for two of 0"


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_a_pattern_stays_where_none_is_better(n: int, m: int) -> None:
    flat = torch.ones(1, m * m)
    now = best_patterns(torch.rand(1, m * m, generator=torch.Generator().manual_seed(1)), n, m)
    assert not torch.equal(now, best_patterns(flat, n, m))
    assert torch.equal(best_patterns(flat, n, m, now), now)
    flat[~now] = 2.0
    assert float((best_patterns(flat, n, m, now) & now).sum()) < n * m
    rows_only = torch.zeros(m, m, dtype=torch.bool)
    rows_only[:, :n] = True
    assert is_pattern(best_patterns(rows_only.view(1, -1).float(), n, m, rows_only.view(1, -1)), n, m), (
        "no pattern stays"
    )


def test_nan_and_infinite_values_still_give_a_pattern() -> None:
    block = torch.ones(1, 16)
    block[0, 3], block[0, 7], block[0, 8] = torch.nan, torch.inf, -torch.inf
    found = best_patterns(block, 2, 4)
    assert is_pattern(found, 2, 4) and bool(found[0, 7]) and not bool(found[0, 8])


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_units_go_to_blocks_and_back(spec: LayerSpec) -> None:
    blocks = blocks_of(spec)
    assert blocks is not None
    numbers = torch.arange(spec.units)
    assert blocks.of(numbers).shape == (spec.units // 16, 16)
    assert torch.equal(blocks.units(blocks.of(numbers)), numbers)


def test_the_blocks_of_a_linear_layer_and_of_a_convolution() -> None:
    assert Blocks((4, 4), 0, 1, 2).of(torch.arange(16))[2].tolist() == [8, 9, 12, 13]
    of_kernel = Blocks((2, 2, 1, 2), 0, 1, 2).of(torch.arange(8))
    assert of_kernel.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]], "at each position of the kernel"


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_draw_is_transposable(spec: LayerSpec) -> None:
    first, again, other = (drawn(spec, fitted(spec, spec.units // 2), seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    flags = torch.zeros(spec.units, dtype=torch.bool).index_fill_(0, first, True)
    groups, blocks = groups_of(spec), blocks_of(spec)
    assert groups is not None and blocks is not None
    assert (groups.of(flags).sum(1) == 2).all(), "N:M along the inputs"
    assert is_pattern(blocks.of(flags), 2, 4)


def test_all_units_are_drawn_about_as_often() -> None:
    spec, times = LayerSpec("w", "fc", (4, 4), 2, structure="2:4 transposable"), torch.zeros(16)
    for seed in range(2000):
        times[drawn(spec, 8, seed)] += 1
    assert (times / 2000 - 0.5).abs().max() < 0.05


def test_the_scale_of_one_block_does_not_reach_another() -> None:
    spec = LayerSpec("w", "fc", (4, 8), 2, structure="2:4 transposable")
    values = torch.rand(32, generator=torch.Generator().manual_seed(2))
    scaled = (values.view(4, 8) * torch.tensor([1.0] * 4 + [2.0**-60] * 4)).view(-1)
    assert torch.equal(largest_pattern(spec, values), largest_pattern(spec, scaled))


def test_outputs_that_do_not_fit() -> None:
    spec = LayerSpec("w", "fc", (10, 8), 2, structure="2:4 transposable")
    with pytest.raises(UserError) as refused:
        require_structure([spec], {"fc": 0.5})
    assert str(refused.value) == (
        "sparsity.structure is 2:4 transposable, and w of shape (10, 8) has 10 outputs, which 4 does not divide: "
        "exclude it (sparsity.exclude), or take another structure"
    )
