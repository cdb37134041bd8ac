from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.parts.gpu.waits import host_waits
from benchmarks.parts.live_memory import as_on_gpu
from dynsparse.masks.drawing import at_most_half, draw_distinct, foreseen, free_numbers, merge_sorted
from dynsparse.seeds import seed_for

CPU = torch.device("cpu")


layers_to_draw = st.lists(
    st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, 2**62))), max_size=6
)


@given(layers_to_draw)
def test_draws_are_distinct_in_range_and_in_order(layers: list[tuple[int, int, int]]) -> None:
    sizes, counts, seeds = ([layer[i] for layer in layers] for i in range(3))
    drawn = draw_distinct(sizes, counts, seeds, CPU)
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    start = 0
    for part, size in zip(drawn.split(counts), sizes, strict=True):
        assert all(start <= number < start + size for number in part.tolist())
        start += size


@given(layers_to_draw)
def test_what_a_layer_draws_depends_on_its_own_arguments_alone(layers: list[tuple[int, int, int]]) -> None:
    sizes, counts, seeds = ([layer[i] for layer in layers] for i in range(3))
    together = draw_distinct(sizes, counts, seeds, CPU).split(counts)
    start = 0
    for part, size, count, seed in zip(together, sizes, counts, seeds, strict=True):
        assert torch.equal(part - start, draw_distinct([size], [count], [seed], CPU))
        start += size


@given(st.lists(layers_to_draw, min_size=1, max_size=3))
def test_foreseen_draws_are_the_same_and_read_nothing(draws: list[list[tuple[int, int, int]]]) -> None:
    asked = [tuple([layer[i] for layer in layers] for i in range(3)) for layers in draws]
    repeats = foreseen([at_most_half(*one) for one in asked], CPU)
    for one, known in zip(asked, repeats, strict=True):
        with as_on_gpu(), host_waits(CPU) as waits:
            found = draw_distinct(*one, CPU, known)
        assert waits == []
        assert torch.equal(found, draw_distinct(*one, CPU))


@pytest.mark.parametrize(
    "count", [10, 499, 999, pytest.param(200, marks=pytest.mark.slow), pytest.param(700, marks=pytest.mark.slow)]
)
def test_draws_are_uniform(count: int) -> None:
    """Every number, and every distance of two neighbours in the ring, comes up as often as it must.

    Chi-square over 3,000 draws of 1,000 numbers stays within 6 sigma; with more than half it is the complement that
    is drawn.
    """
    n, draws = 1000, 3000
    hits, distances = torch.zeros(n), torch.zeros(n)
    for seed in range(draws):
        drawn = draw_distinct([n], [count], [seed_for("uniform", seed)], CPU)
        hits[drawn] += 1
        if count == 10:
            distances += torch.bincount((drawn - drawn.roll(1)) % n, minlength=n)
    expected = draws * count / n
    chi_square = float(((hits - expected) ** 2 / (expected * (1 - count / n))).sum())
    assert abs(chi_square - n) < 6 * (2 * n) ** 0.5
    if count == 10:
        # The next of 10 in a ring of 1000 is d further with probability C(999 - d, 8) / C(999, 9).
        chance = [math.comb(n - 1 - d, 8) / math.comb(n - 1, 9) for d in range(1, 601)]
        far = torch.tensor(chance) * draws * count
        chi_square = float(((distances[1:601] - far) ** 2 / far).sum())
        assert abs(chi_square - 600) < 6 * (2 * 600) ** 0.5


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_free_numbers(taken: set[int], ranks: set[int]) -> None:
    free = [number for number in range(200) if number not in taken]
    found = free_numbers(torch.tensor(sorted(taken), dtype=torch.int64), torch.tensor(sorted(ranks), dtype=torch.int64))
    assert found.tolist() == [free[rank] for rank in sorted(ranks)]


def test_draws_beyond_float32_and_int32() -> None:
    """Numbers above 2^24 and 2^31 are exact."""
    for n in (2**24 + 101, 2**40):
        drawn = draw_distinct([n, n], [50, 50], [3, 4], CPU)
        assert drawn.unique().numel() == 100
        assert any(number % 2 for number in drawn.tolist())
        assert n <= int(drawn[50:].min()) < int(drawn.max()) < 2 * n
    taken = torch.arange(2**24, 2**24 + 1000, 2)
    assert free_numbers(taken, torch.tensor([2**24, 2**24 + 3])).tolist() == [2**24 + 1, 2**24 + 7]


@given(st.sets(st.integers(0, 200)), st.sets(st.integers(0, 200)))
def test_merge_sorted(a: set[int], b: set[int]) -> None:
    b = b - a
    merged = merge_sorted(torch.tensor(sorted(a), dtype=torch.int64), torch.tensor(sorted(b), dtype=torch.int64))
    assert merged.tolist() == sorted(a | b)
