from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dynsparse.config import loading
from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.methods import Clock
from dynsparse.methods.pruning import PruningSettings
from dynsparse.models.mnist_mlp import MnistMlpSettings
from dynsparse.models.resnet50 import ResNet50Settings
from dynsparse.reallocation import Reallocator
from dynsparse.training.network import build_method
from tests.methods.hand import by_hand, values

ROW = [0.5, -1.2, 0.3, 0.9, -0.1, 0.7, 1.1, -0.4, 0.2, 0.8, -0.6, 1.0]


def settings(**options: Any) -> PruningSettings:
    return PruningSettings.model_validate(
        {"name": "pruning", "after_epoch": 1, "every_epochs": 2, "iterations": 2, "target_fc": 0.75, **options}
    )


def end_of(epoch: int) -> Clock:
    return Clock(step=(epoch + 1) * 10, epoch=epoch, steps_per_epoch=10, epochs=9)


@pytest.mark.parametrize(
    ("schedule", "half_way"),
    [
        ("exponential", [0, -1.2, 0, 0.9, 0, 0.7, 1.1, 0, 0, 0.8, 0, 1.0]),
        ("cubic", [0, -1.2, 0, 0.9, 0, 0, 1.1, 0, 0, 0, 0, 1.0]),
    ],
)
def test_worked_by_hand(schedule: str, half_way: list[float]) -> None:
    """Twelve weights, target 0.75 in two prunes, at the end of epochs 1 and 3 (counted from 0): 3 are left.

    exponential: density 0.25^(1/2) = 0.5 after the first: 6 stay.
    cubic: 1 - 0.75 (1 - (1/2)^3) = 0.34375 of 12 is 4.1: 4 stay.
    By magnitude: 1.2 1.1 1.0 | 0.9 | 0.8 0.7 | ...
    """
    reallocator = by_hand(settings(schedule=schedule), [ROW])
    layer = reallocator.masks.layers[0]
    assert [e for e in range(9) if reallocator.is_due(end_of(e))] == [1, 3]
    assert not reallocator.is_due(Clock(15, 1, steps_per_epoch=10, epochs=9)), "at the end of the epoch"
    reallocator(end_of(1))
    assert values(layer) == half_way
    reallocator(end_of(3))
    assert values(layer) == [0, -1.2, 0, 0, 0, 0, 1.1, 0, 0, 0, 0, 1.0]
    assert reallocator.masks.budget == reallocator.masks.active_weights == 3


@given(
    st.lists(st.integers(2, 400), min_size=1, max_size=4),
    st.floats(0.0, 0.995).map(lambda x: round(x, 3)),
    st.integers(1, 20),
    st.sampled_from(["exponential", "cubic"]),
)
def test_the_asked_total_is_reached_exactly(sizes: list[int], target: float, iterations: int, schedule: str) -> None:
    """The share of all weights, rounded once: rounding each layer would miss it by one or two."""
    model = nn.ModuleList(nn.Linear(size, 7, bias=False) for size in sizes)
    specs = sparse_layers(model)
    masks = MaskSet(model, specs, {spec.name: spec.units for spec in specs})
    method = settings(target_fc=target, iterations=iterations, schedule=schedule, after_epoch=0, every_epochs=1).build()
    asked = round(Fraction(str(1 - Fraction(str(target)))) * 7 * sum(sizes))
    try:
        method.prepare(masks)
    except UserError:
        assert min((1 - target) * 7 * size for size in sizes) < 1
        return
    reallocator = Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=1.0))
    before = masks.active_weights
    for epoch in range(iterations):
        assert reallocator.is_due(end_of(epoch))
        reallocator(end_of(epoch))
        masks.check()
        assert masks.active_weights == masks.budget <= before, "nothing grows"
        before = masks.active_weights
    assert not reallocator.is_due(end_of(iterations))
    assert masks.active_weights == asked
    for layer in masks:
        assert abs(layer.active_weights - Fraction(asked * layer.spec.weights, 7 * sum(sizes))) < 1


@pytest.mark.parametrize(("granularity", "unit"), [(4, 1), (2, 9)])
def test_resnet_50_is_pruned_to_its_asked_total(granularity: Any, unit: int) -> None:
    with torch.device("meta"):
        config = ResNet50Settings(name="imagenet_resnet50")
        model = config.build((3, 224, 224), 1000)
    specs = sparse_layers(model, default=config.sparse_by_default(model), granularity=granularity)
    method = settings(target_conv=0.9, target_fc=0.9).build()
    method.check(specs, {})
    kept = sum(method.final[spec.name] * spec.unit_size for spec in specs)  # type: ignore[attr-defined]
    asked = round(0.1 * sum(spec.weights for spec in specs if spec.kind == "conv")) + round(0.1 * 2048 * 1000)
    assert 0 <= asked - kept < unit


def test_the_last_layer_of_mnist_mlp_is_pruned_to_a_tenth_and_the_others_take_up_the_difference() -> None:
    """784-300-100-10 at 0.99: 2,662 of 266,200 weights stay; the last layer keeps 100 of 1,000, not 10.

    The others keep 2,562 of 265,200, divided as 235,200 : 30,000, that is 2,272.2 : 289.8, so 2,272 and 290.
    """
    base = {"model": {"name": "mnist_mlp"}, "data": {"name": "digits"}, "start": {"weights_from": "x"}}
    pruning = {"name": "pruning", "after_epoch": 1, "target_fc": 0.99}
    config = loading.parse({**base, "method": pruning})
    model = MnistMlpSettings(name="mnist_mlp").build((1, 28, 28), 10)
    specs = sparse_layers(model)
    masks = MaskSet(model, specs, {spec.name: spec.units for spec in specs})
    method = build_method(config, specs)
    method.prepare(masks)
    Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=1.0))(end_of(1))
    assert [layer.active_weights for layer in masks] == [2272, 290, 100]
    own_limits = loading.parse({**base, "method": {**pruning, "max_sparsity": {}}})
    method = build_method(own_limits, specs)
    method.check(specs, {})
    assert list(method.final.values()) == [2352, 300, 10]  # type: ignore[attr-defined]
    build_method(config, specs[:2]).check(specs[:2], {})  # A dense last layer needs no limit.


def test_what_others_take_up_stops_at_their_own_limits() -> None:
    """Three layers of 1,000 at 0.8: 600 stay.

    In proportion each would keep 200. C's limit 0.65 leaves it 350, so that A and B share 250, 125 each;
    B's limit 0.85 leaves it 150; A takes the rest, 100.
    """
    model = nn.ModuleList(nn.Linear(100, 10, bias=False) for _ in range(3))
    limits = {"0.weight": 0.95, "1.weight": 0.85, "2.weight": 0.65}
    method = settings(target_fc=0.8, max_sparsity=limits).build()
    method.check(sparse_layers(model), {})
    assert method.final == {"0.weight": 100, "1.weight": 150, "2.weight": 350}  # type: ignore[attr-defined]


def test_a_limit_above_the_target_changes_nothing() -> None:
    method = settings(target_fc=0.5, max_sparsity={"*": 0.9}).build()
    reallocator = by_hand(settings(), [ROW, ROW])
    method.prepare(reallocator.masks)
    assert method.final == {"0.weight": 6, "1.weight": 6}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_fc": 0.99}, "method.target_fc is 0.99: 0.weight has 12 units and would keep none; each layer keeps"),
        ({"max_sparsity": {"fc9": 0.5}}, "method.max_sparsity: 'fc9' matches no sparse layer; there are 0.weight"),
        ({"max_sparsity": {"*": 0.5}}, "method.max_sparsity: 0.weight, 1.weight would keep 12 weights, "),
        (
            {"max_sparsity": {"0.weight": 0.1}},
            "0.weight would keep 11 weights, method.target_fc 0.75 asks for 6 in all",
        ),
    ],
)
def test_targets_that_cannot_be_met(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        by_hand(settings(**options), [ROW, ROW])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
