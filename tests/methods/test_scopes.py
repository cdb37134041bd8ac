"""SET, RigL and gradual pruning by one threshold over all layers, with a floor for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, MaskSet, sparse_layers
from dynsparse.methods import Aim, Clock
from dynsparse.methods.dynamic import ScopedSettings
from dynsparse.methods.gmp import GmpSettings
from dynsparse.methods.rigl import RiglSettings
from dynsparse.methods.set import SetSettings
from dynsparse.reallocation import Reallocator
from tests.methods.stepping import assert_ranks_agree, stepped
from tests.methods.test_contract import Run

CASES: list[tuple[str, dict[str, Any]]] = [
    ("rigl", {"scope": "global"}),
    ("rigl", {"scope": "global", "floor": 0.1}),
    ("set", {"scope": "global", "floor": 0.1}),
    ("gmp", {"scope": "global", "floor": 0.15}),
    ("rigl", {"scope": "global", "floor": 0.1, "density": {"name": "cubic", "end": 0.5}}),
]
IDS = [f"{name} {options}" for name, options in CASES]


@pytest.mark.parametrize("granularity", [4, 2])
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_the_contract_holds_and_no_layer_falls_below_its_floor(
    name: str, options: dict[str, Any], granularity: int
) -> None:
    before = [layer.active_weights for layer in Run(name, granularity, 0.8, "adamw", **options).masks]
    for _, run in stepped(name, granularity, 0.8, **options):
        largest = max(layer.spec.unit_size for layer in run.masks)
        assert abs(run.masks.active_weights - run.masks.budget) < largest
        for layer in run.masks:
            assert layer.active_units >= options.get("floor", 0) * layer.spec.units
    assert run.moved > 0
    assert [layer.active_weights for layer in run.masks] != before, "weights went from layer to layer"


def test_ranks_agree() -> None:
    assert_ranks_agree(CASES)


def moved(settings: ScopedSettings) -> dict[str, list[int]]:
    """Active units after one event. A third of six weights is to move: two.

    weights    .1 .2 .3  .  .     .9 .8 .7  .  .
    gradients   .  .  .  1  2      .  .  .  9  3
    """
    model = nn.Sequential(nn.Linear(5, 1, bias=False), nn.Linear(1, 5, bias=False))
    masks = MaskSet(model, sparse_layers(model), dict.fromkeys(("0.weight", "1.weight"), torch.arange(3)))
    first, second = (layer.weight for layer in masks)
    with torch.no_grad():
        first.copy_(torch.tensor([[0.1, 0.2, 0.3, 0, 0]]))
        second.copy_(torch.tensor([[0.9], [0.8], [0.7], [0], [0]]))
    first.grad, second.grad = torch.tensor([[0.0, 0, 0, 1, 2]]), torch.tensor([[0.0], [0], [0], [9], [3]])
    method = settings.build()
    method.prepare(masks)
    reallocator = Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=1.0))
    clock = Clock(1, 0, steps_per_epoch=10_000, epochs=1)
    reallocator(clock, reallocator.before_step(clock))
    return {layer.name: layer.active.tolist() for layer in masks}


def test_rigl_by_hand() -> None:
    rigl = {"name": "rigl", "period": 1, "fraction": 1 / 3}
    assert moved(RiglSettings(**rigl)) == {"0.weight": [1, 2, 4], "1.weight": [0, 1, 3]}, "one in each layer"
    found = moved(RiglSettings(**rigl, scope="global"))
    assert found == {"0.weight": [2], "1.weight": [0, 1, 2, 3, 4]}, ".1 and .2 fall; 9 and 3 grow"
    found = moved(RiglSettings(**rigl, scope="global", floor=0.4))
    assert found == {"0.weight": [1, 2], "1.weight": [0, 1, 3, 4]}, "the first keeps two of five: .1 and .7 fall"


def test_set_by_hand() -> None:
    """.1 and .2 fall. Both layers have two free places: each gets one."""
    found = moved(SetSettings(name="set", period=1, fraction=1 / 3, scope="global"))
    assert {name: len(units) for name, units in found.items()} == {"0.weight": 2, "1.weight": 4}
    assert found["0.weight"][0] == 2
    assert found["1.weight"][:3] == [0, 1, 2]


def test_bad_floors() -> None:
    with pytest.raises(ValidationError, match=r"floor is 0\.1, and with scope layer no layer loses weights to others"):
        RiglSettings(name="rigl", floor=0.1)
    layers = [LayerSpec("a", "fc", (10, 10), 2), LayerSpec("b", "fc", (10, 10), 2)]
    settings = GmpSettings(name="gmp", scope="global", floor=0.2).knowing(Aim({"conv": 0.9, "fc": 0.9}))
    with pytest.raises(
        UserError, match=r"method\.floor is 0\.2: all layers together keep 40 weights at least, and .* 20"
    ):
        settings.build().check(layers, {"a": 100, "b": 100})
    RiglSettings(name="rigl", scope="global", floor=0.1).build().check(layers, {"a": 10, "b": 10})
