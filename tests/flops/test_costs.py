"""Multiples of the dense network, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from dynsparse.flops import Costs, in_words, whole_steps
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.methods.clock import Schedule
from dynsparse.methods.dsr import DsrSettings
from dynsparse.methods.nm import NmSettings
from dynsparse.methods.rigl import RiglSettings
from dynsparse.methods.sparse_momentum import SparseMomentumSettings
from dynsparse.methods.topkast import TopkastSettings


def network() -> tuple[MaskSet, Costs]:
    """A convolution of 4 x 4 outputs that stays dense, and a linear layer of 160 weights, of which 40 are active."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(16, 10))
    masks = MaskSet(model, sparse_layers(model, include=["2.weight"]), {"2.weight": 40})
    costs = Costs.of(model, masks, (1, 4, 4))
    assert costs is not None
    return masks, costs


def test_rules() -> None:
    """RigL's appendix: f = 9 x 16 + 40 multiply-adds, f_D = 9 x 16 + 160; a step is 3 f, or 2 f + f_D."""
    _, costs = network()
    active = {"2.weight": 40}
    assert costs.dense == 2 * (144 + 160)
    assert costs.layer("2.weight", 40) == 2 * 40
    assert costs.inference(active) == 2 * (144 + 40)
    assert costs.step(active, whole=False) == 3 * 2 * (144 + 40)
    assert costs.step(active, whole=True) == 2 * 2 * (144 + 40) + 2 * (144 + 160)
    assert costs.step({"2.weight": 160}, whole=False) == 3 * costs.dense


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (RiglSettings(name="rigl", period=10, until=0.75), 7 / 100),  # Steps 10 to 70; the 75th is none of them.
        (DsrSettings(name="dsr", period=10), 0.0),
        (SparseMomentumSettings(name="sparse_momentum"), 1.0),
        (TopkastSettings(name="topkast", stop_epoch=3), 3 / 5),  # Of five epochs.
        (NmSettings(name="nm", straight_through=False), 0.0),
    ],
)
def test_steps_with_whole_gradients(method: Any, expected: float) -> None:
    assert whole_steps(method.build(), Schedule(total_steps=100, steps_per_epoch=20)) == expected


def test_words() -> None:
    assert [in_words(flops) for flops in (None, 0, 734, 999.6, 8_178_368_512)] == ["-", "0", "734", "1 k", "8.18 G"]
