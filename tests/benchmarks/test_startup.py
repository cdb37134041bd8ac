"""`benchmarks.startup`, tiny: that the parts make up the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import startup
from benchmarks.harness.calls import Watch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_tiny(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.startup", "--tiny", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "startup.json").read_text())
    start = content["start"]
    for way, parts in start["parts"].items():
        assert list(parts) == list(startup.PARTS), "no part that the page would leave out"
        total = sum(part["median"] for part in parts.values())
        assert total == pytest.approx(start["seconds"][way]["median"])
        assert all(part["median"] > 0 for part in parts.values())
    assert set(content["masks"]["ratio_to_network"]) == {"network", "0.9", "0.99"}
    for by, sizes in (("layers", [2, 4, 8]), ("weights", [128, 512, 2048])):
        moved = content["growth"][by]["moved"]
        assert [int(size) for size in moved] == sizes
        for act in ("masks", "reallocation"):
            assert list(content["growth"][by][act]["ms"]) == list(moved)
    assert (tmp_path / "startup.md").read_text().count("\n## ") == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["startup.json", "startup.md"]


def test_a_part_is_without_those_within_it() -> None:
    parts, owner = Watch(), SimpleNamespace()
    owner.inner = lambda: sum(range(100_000))
    owner.outer = lambda: owner.inner()
    parts.on(owner, "inner", "inner")
    whole = Watch()
    parts.on(owner, "outer", "outer")
    assert whole.timed(owner.outer, "whole")() == sum(range(100_000))
    assert 0 < sum(own for (own,) in parts.own.values()) <= whole.seconds


def test_a_reallocation_moves_the_same_each_time() -> None:
    network = startup.Network(3, 20)
    assert [network.reallocate() for _ in range(3)] == [round(startup.MOVED * 120)] * 3


@pytest.mark.parametrize("power", [0, 1, 2])
def test_exponent(power: int) -> None:
    assert startup.exponent([10, 100, 1000], [3.0 * size**power for size in (10, 100, 1000)]) == pytest.approx(power)
