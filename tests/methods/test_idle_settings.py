"""Settings of methods that would do nothing are refused, in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from dynsparse import SparseTraining
from dynsparse.errors import UserError
from dynsparse.methods import AnyMethod

IDLE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    # What does nothing, what makes it do something, and the message.
    (
        {"name": "gmp", "stop_epoch": 5},
        {"name": "rigl", "stop_epoch": 5},
        "stop_epoch is 5, and has no effect: no weights are exchanged, and density says when pruning ends: leave it",
    ),
    (
        {"name": "acdc", "period": 5},
        {"name": "acdc", "period": 5, "density": {"name": "cubic"}},
        "period has no effect with density alternating, which changes at the end of epochs: leave it out",
    ),
    (
        {"name": "set", "scaling": True, "scope": "global"},
        {"name": "set", "scaling": True},
        "scaling has no effect with scope global, where every free place is as likely to grow: leave it out, or set",
    ),
    (
        {"name": "srigl", "ablation": 0, "keep_neurons": ["fc*"]},
        {"name": "srigl", "keep_neurons": ["fc*"]},
        "keep_neurons has no effect with ablation 0, which takes no neuron out: leave it out",
    ),
    ({"name": "rigl", "until": 0.0}, {"name": "rigl", "until": 0.01}, "Input should be greater than 0"),
]


@pytest.mark.parametrize(("idle", "working", "message"), IDLE, ids=[message[:30] for _, _, message in IDLE])
def test_settings_that_would_do_nothing(idle: dict[str, Any], working: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(AnyMethod).validate_python(idle)
    assert message in str(caught.value)
    TypeAdapter(AnyMethod).validate_python(working)


def test_a_resolved_config_names_all_defaults() -> None:
    for name in ("gmp", "acdc", "set", "srigl", "rigl"):
        settings: Any = TypeAdapter(AnyMethod).validate_python({"name": name})
        assert TypeAdapter(AnyMethod).validate_python(settings.model_dump()) == settings


ON_LAYERS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"name": "gmp", "new_weights": "initial"},
        {"name": "gmp", "new_weights": "initial", "density": {"name": "cubic", "start": 0.9}},
        "method.new_weights is initial, and no weight grows, as the density only falls: leave it out",
    ),
    (
        {"name": "srigl", "keep_neurons": ["fc9*"]},
        {"name": "srigl", "keep_neurons": ["0.*"]},
        "method.keep_neurons: 'fc9*' matches no sparse layer; there are 0.weight, 2.weight",
    ),
]


@pytest.mark.parametrize(("idle", "working", "message"), ON_LAYERS, ids=["new_weights", "keep_neurons"])
def test_settings_that_would_do_nothing_on_these_layers(
    idle: dict[str, Any], working: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        begun(idle)
    assert str(caught.value) == message
    begun(working)


def begun(method: dict[str, Any]) -> SparseTraining:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    structure = "fan_in" if method["name"] == "srigl" else "free"
    return SparseTraining(model, optimizer, method, sparsity=0.5, total_steps=1000, structure=structure)
