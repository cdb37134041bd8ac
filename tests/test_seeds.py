from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch

from dynsparse.seeds import random_bits, seed_for


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
