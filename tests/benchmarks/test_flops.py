"""FLOPs of ResNet-50, pinned beside RigL's published multiples."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import flops


def test_resnet50_by_rigl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["flops", "--output", str(tmp_path)])
    flops.main()
    content = json.loads((tmp_path / "flops.json").read_text())
    assert content["dense_flops"] == 2 * 4_089_184_256, "torchvision publishes 4.09 billion multiply-adds"
    found = {(one["allocation"], one["sparsity"]): one for one in content["cases"]}
    ours = {key: (round(one["inference"], 3), round(one["training"], 3)) for key, one in found.items()}
    assert ours == {
        ("uniform", 0.8): (0.223, 0.225),
        ("uniform", 0.9): (0.126, 0.128),
        ("erk", 0.8): (0.414, 0.415),
        ("erk", 0.9): (0.242, 0.244),
    }
    assert {key: round(one["as_published"], 2) for key, one in found.items()} == flops.PUBLISHED
    assert round(content["all_sparse"], 2) == 0.10
    page = (tmp_path / "flops.md").read_text()
    assert "| erk | 0.8 | 0.415 | 0.414 | 0.4153 | 0.42 |" in page
