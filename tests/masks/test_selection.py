from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynsparse.masks.selection import (
    Cut,
    chosen,
    cuts_below,
    cuts_smallest,
    draw_free,
    merge_sorted,
    seed_for,
)

# Few distinct values, so that ties are the rule.
tied_scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), min_size=1, max_size=40)


@given(tied_scores, st.data())
def test_cut_takes_exactly_the_k_smallest_with_ties_by_index(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    scores = torch.tensor(values)
    (cut,) = cuts_smallest([scores], [k])
    expected = sorted(range(len(values)), key=lambda i: (values[i], i))[:k]
    assert chosen(scores, cut).nonzero().squeeze(1).tolist() == sorted(expected)
    assert cut.count == k


@given(tied_scores, st.sampled_from([-1.0, 0.0, 0.25, 0.3, 3.0, 9.0]))
def test_cut_below_takes_what_is_strictly_below(values: list[float], threshold: float) -> None:
    scores = torch.tensor(values)
    (cut,) = cuts_below([scores], threshold)
    taken = chosen(scores, cut)
    assert taken.tolist() == [v < threshold for v in values]
    assert cut.count == int(taken.sum())


def test_cuts_of_several_layers_do_not_mix() -> None:
    scores = [torch.tensor([3.0, 1.0, 2.0]), torch.tensor([5.0]), torch.tensor([7.0, 7.0])]
    cuts = cuts_smallest(scores, [2, 0, 1])
    assert cuts == [Cut(2.0, 1, 2), Cut(float("-inf"), 0, 0), Cut(7.0, 1, 1)]
    assert [chosen(s, c).tolist() for s, c in zip(scores, cuts, strict=True)] == [
        [False, True, True],
        [False],
        [True, False],
    ]


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 2**62), st.data())
def test_draw_free_gives_distinct_free_positions_in_order(
    free_flags: list[bool], seed: int, data: st.DataObject
) -> None:
    free = sum(free_flags)
    count = data.draw(st.integers(0, free))
    drawn = draw_free(torch.tensor(free_flags), free, count, seed).tolist()
    assert len(drawn) == count
    assert drawn == sorted(set(drawn))
    assert all(free_flags[position] for position in drawn)


@pytest.mark.parametrize(("free", "count"), [(990, 10), (30, 10)], ids=["by rejection", "by permutation"])
def test_draw_free_is_uniform(free: int, count: int) -> None:
    """Every free position comes up equally often: chi-square over 3,000 draws stays within 6 sigma."""
    is_free = torch.zeros(1000, dtype=torch.bool)
    is_free[torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:free]] = True
    hits = torch.zeros(1000)
    for seed in range(3000):
        hits[draw_free(is_free, free, count, seed)] += 1
    assert not hits[~is_free].any()
    expected = 3000 * count / free
    variance_each = expected * (1 - count / free)
    chi_square = float(((hits[is_free] - expected) ** 2 / variance_each).sum())
    assert abs(chi_square - free) < 6 * (2 * free) ** 0.5


def test_draw_free_beyond_float32_integers() -> None:
    """Indices above 2^24 are exact: the only free positions are neighbours there."""
    n = 2**24 + 101
    is_free = torch.zeros(n, dtype=torch.bool)
    is_free[-7:] = True
    assert draw_free(is_free, 7, 5, seed=3).tolist() == sorted(set(draw_free(is_free, 7, 5, seed=3).tolist()))
    assert set(draw_free(is_free, 7, 7, seed=3).tolist()) == set(range(n - 7, n))


@given(st.sets(st.integers(0, 200)), st.sets(st.integers(0, 200)))
def test_merge_sorted(a: set[int], b: set[int]) -> None:
    b = b - a
    merged = merge_sorted(torch.tensor(sorted(a), dtype=torch.int64), torch.tensor(sorted(b), dtype=torch.int64))
    assert merged.tolist() == sorted(a | b)


def test_seeds_are_the_same_in_every_process() -> None:
    """Unlike Python's hash of a string, which differs by PYTHONHASHSEED."""
    code = "from dynsparse.masks.selection import seed_for; print(seed_for(1, 20, 'layer.weight'))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{seed_for(1, 20, 'layer.weight')}\n"}


def test_seeds_tell_events_apart() -> None:
    seeds = {seed_for(run, step, name) for run in range(4) for step in range(20) for name in ("a", "b", "1")}
    assert len(seeds) == 4 * 20 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert np.unique([seed & 0xFFFF for seed in seeds]).size > 200
