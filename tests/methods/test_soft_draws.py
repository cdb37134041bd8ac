"""Methods that draw softly what falls and grows: exact counts, the same on every rank, resumed to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.methods import Clock
from dynsparse.methods.set import SetSettings
from dynsparse.reallocation import Reallocator
from tests.methods.stepping import assert_ranks_agree, stepped
from tests.methods.test_contract import REGISTRY, Run

CASES: list[tuple[str, dict[str, Any]]] = [
    ("set", {"soft_drop": 1}),
    ("rigl", {"soft_drop": 4, "soft_growth": 2}),
    ("rigl", {"soft_drop": 2, "soft_growth": 1, "structure": "fan_in"}),
    ("sparse_momentum", {"soft_growth": 3}),
    ("granet", {"soft_growth": 1}),
]
IDS = [f"{name} {options}" for name, options in CASES]


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_the_contract_holds(name: str, options: dict[str, Any]) -> None:
    exact = Run(name, 4, 0.8, "adamw")
    for number, run in stepped(name, 4, 0.8, **options):
        exact.step(number)
        if "structure" not in options:
            assert run.masks.active_weights == exact.masks.active_weights
    assert run.moved > 0
    assert [layer.active.tolist() for layer in run.masks] != [layer.active.tolist() for layer in exact.masks]


def test_ranks_agree() -> None:
    assert_ranks_agree(CASES)


def test_the_smaller_falls_more_often_in_events_too() -> None:
    """Two weights of 1 and 2, one to fall, with the power 1: the first in two thirds of all events."""
    falls = 0
    for seed in range(600):
        model = nn.Linear(4, 1, bias=False)
        masks = MaskSet(model, sparse_layers(model), {"weight": torch.tensor([0, 1])})
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
        method = SetSettings(name="set", period=1, fraction=0.5, soft_drop=1).build()
        reallocator = Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=1.0), seed=seed)
        reallocator(Clock(1, 0))
        falls += 0 not in masks.layers[0].active.tolist()
    assert falls / 600 == pytest.approx(2 / 3, abs=0.07)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dsr", {"soft_drop": 2}, r"soft_drop is 2, and this method drops by a threshold, not a number: leave it 0"),
        ("deepr", {"soft_drop": 1}, r"soft_drop is 1, and this method drops by a threshold"),
        ("set", {"soft_growth": 1}, r"soft_growth is 1, and this method grows at random, by no score: leave it 0"),
        ("dsr", {"soft_growth": 1}, r"soft_growth is 1, and this method grows at random"),
    ],
)
def test_draws_that_a_rule_has_no_scores_for(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        REGISTRY[name](name=name, **options).build().check([], {})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rigl", {"scope": "global", "soft_drop": 2}),
        ("rigl", {"scope": "global", "soft_growth": 2}),
        ("set", {"scope": "global", "soft_drop": 2}),
        ("gmp", {"scope": "global", "soft_drop": 2}),
        ("chase", {"soft_growth": 2}),
        ("granet", {"soft_drop": 2}),
    ],
)
def test_draws_where_layers_compete_by_score(name: str, options: dict[str, Any]) -> None:
    """A draw knows scores relative to the largest of the layer: a layer of small weights would lose no more for it."""
    with pytest.raises(ValidationError, match="is 2, and all layers compete by their scores here"):
        REGISTRY[name](name=name, **options)
