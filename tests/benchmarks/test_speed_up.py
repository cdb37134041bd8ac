"""The benchmark of speed_up over the families of torchvision."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import speed_up
from dynsparse.shrinking import compact


@pytest.mark.slow
@pytest.mark.timeout(900)  # Each case exports the network twice or more.
@pytest.mark.parametrize("through", ["torch", "onnxruntime"])
def test_speed_up(through: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case has its figures and its place on the page. How fast it is only a quiet machine can say."""
    if through != "torch":
        pytest.importorskip(through)
    monkeypatch.setattr(sys, "argv", ["speed_up", "--tiny", "--output", str(tmp_path), "--through", through])
    speed_up.main()
    name, others = ("speed_up", set()) if through == "torch" else (f"speed_up_{through}", {speed_up.THROUGH})
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert [(case["kind"], case["batch"]) for case in content["cases"]] == [
        ("masks", 1),
        ("masks", 2),
        ("channels", 1),
        ("channels", 2),
    ]
    for case in content["cases"]:
        assert set(case["ratio_to_dense"]) == {"dense", "sped up", *others}
        assert case["promised"] <= 1 and 0 <= case["difference"] <= 1e-4
    assert (tmp_path / f"{name}.md").read_text().count("\n| mobilenet_v3_small | ") == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.json", f"{name}.md"]


def test_the_networks_have_the_zeros_that_the_page_tells_of() -> None:
    masked = speed_up.masked("mobilenet_v3_small", 32)
    weights = [layer.weight for layer in masked.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    sparse = [weight for weight in weights if not bool(weight.all())]
    zeros = sum(int((weight == 0).sum()) for weight in sparse)
    assert zeros / sum(weight.numel() for weight in sparse) == pytest.approx(speed_up.SPARSITY, abs=0.02)


@pytest.mark.slow
def test_dead_channels_can_go() -> None:
    model = speed_up.with_dead_channels("mobilenet_v3_small", 32)
    before = sum(value.numel() for value in model.parameters())
    compact(model, (3, 32, 32))
    assert sum(value.numel() for value in model.parameters()) < 0.7 * before
    assert torch.isfinite(model(torch.zeros(1, 3, 32, 32))).all()
