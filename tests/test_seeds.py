from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from dynsparse.seeds import random_bits, random_normal, seed_for


def test_random_bits_are_splitmix64() -> None:
    """Against the published recurrence, in Python's integers."""
    seed, mask = 0x123456789ABCDEF, (1 << 64) - 1
    state, expected = seed, []
    for _ in range(100):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        expected.append((z ^ (z >> 31)) & (mask >> 1))
    assert random_bits(seed, torch.arange(100)).tolist() == expected
    assert random_bits(torch.tensor([seed, seed]), torch.tensor([99, 3])).tolist() == [expected[99], expected[3]]


def test_seeds_are_the_same_in_every_process() -> None:
    """Unlike Python's hash of a string, which differs by PYTHONHASHSEED."""
    code = "from dynsparse.seeds import seed_for; print(seed_for(1, 20, 'layer.weight'))"
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


def test_normal_numbers_are_sums_of_twelve_parts_of_words() -> None:
    (number,) = random_normal(7, torch.tensor([5])).tolist()
    words = random_bits(7, torch.tensor([15, 16, 17])).tolist()
    parts = [word >> shift & 0x7FFF for word in words for shift in (0, 15, 30, 45)]
    assert number == (sum(parts) - 6 * 32767) / 32768


def test_normal_numbers_have_the_moments_of_a_normal_distribution() -> None:
    numbers = random_normal(1, torch.arange(400_000))
    assert numbers.dtype == torch.float32
    assert float(numbers.mean()) == pytest.approx(0, abs=0.005)  # Three standard errors.
    assert float(numbers.std()) == pytest.approx(1, abs=0.004)
    assert float((numbers**3).mean()) == pytest.approx(0, abs=0.02)
    assert float((numbers**4).mean()) == pytest.approx(2.9, abs=0.05)
    assert float((numbers.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.01)
    assert float(numbers.abs().max()) < 6
    neighbours = torch.stack([numbers[:-1], numbers[1:]])
    assert abs(float(torch.corrcoef(neighbours)[0, 1])) < 0.005


def test_a_normal_number_depends_on_its_place_alone() -> None:
    numbers = random_normal(3, torch.arange(1000))
    some = torch.tensor([[999, 0], [17, 500]])
    assert random_normal(3, some).tolist() == numbers[some].tolist()
    assert not (random_normal(4, torch.arange(1000)) == numbers).all()
