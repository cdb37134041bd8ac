"""Each layer keeps its number of active weights, at any density up to 1, unless the method trades between layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dynsparse.config import loading
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.methods import Clock
from dynsparse.reallocation import Reallocator
from dynsparse.training.network import build_method, build_network
from tests.methods.test_contract import REGISTRY

ROOT = Path(__file__).parents[2]

#: name, settings, whether layers trade
METHODS: list[tuple[str, dict[str, Any], bool]] = [
    ("deepr", {"eta": 1.0}, False),
    ("dsr", {"period": 1, "initial_threshold": 0.5, "target_moves": 20, "scaling": False}, False),
    ("dsr", {"period": 1, "initial_threshold": 0.5, "target_moves": 20}, True),
    ("rigl", {"period": 1, "until": 1.0}, False),
    ("rigl", {"period": 1, "until": 1.0, "fraction": 1.0}, False),
    ("rigl", {"period": 1, "until": 1.0, "soft_drop": 3, "soft_growth": 1}, False),
    ("rigl", {"period": 1, "until": 1.0, "scope": "global", "floor": 0.005}, True),
    ("set", {"period": 1}, False),
    ("set", {"period": 1, "fraction": 1.0}, False),
    ("set", {"period": 1, "scaling": True}, True),
    ("set", {"period": 1, "scope": "global", "fraction": 0.9}, True),
    ("sparse_momentum", {"period": 1}, True),
]
SHAPES = st.one_of(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)),
)
DENSITIES = st.one_of(st.floats(0.01, 1.0), st.sampled_from([0.7, 0.8, 0.95, 0.99, 1.0]))


def model_of(shapes: list[tuple[int, ...]]) -> nn.Module:
    return nn.Sequential(
        *(
            nn.Linear(shape[1], shape[0], bias=False)
            if len(shape) == 2
            else nn.Conv2d(shape[1], shape[0], shape[2:], bias=False)  # type: ignore[arg-type]
            for shape in shapes
        )
    )


@settings(deadline=None)
@given(
    layers=st.lists(st.tuples(SHAPES, DENSITIES), min_size=1, max_size=5),
    case=st.sampled_from(METHODS),
    granularity=st.sampled_from([1, 2, 3, 4]),
    seed=st.integers(0, 1000),
)
def test_layers_keep_their_budget(
    layers: list[tuple[tuple[int, ...], float]], case: tuple[str, dict[str, Any], bool], granularity: Any, seed: int
) -> None:
    name, options, trades = case
    model = model_of([shape for shape, _ in layers])
    specs = sparse_layers(model, granularity=granularity)
    counts = {spec.name: max(1, round(density * spec.units)) for spec, (_, density) in zip(specs, layers, strict=True)}
    masks = MaskSet(model, specs, counts, seed=seed)
    method = REGISTRY[name](name=name, **options).build()
    method.prepare(masks)
    assert method.trades == trades
    reallocator = Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=0.1), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    largest_unit = max(spec.unit_size for spec in specs)
    budget = masks.budget
    for step in range(1, 4):
        with torch.no_grad():
            for layer in masks:
                layer.weight.copy_(torch.randn(layer.spec.shape, generator=generator))
                layer.weight.grad = torch.randn(layer.spec.shape, generator=generator)
        masks.apply_to_weights()
        clock = Clock(step, 0, 10, 1)
        seen = reallocator.before_step(clock)
        report = reallocator.after_step(clock, seen)
        assert report is not None
        masks.check()
        if trades:
            assert abs(masks.active_weights - budget) < largest_unit
        else:
            assert {layer.name: layer.active_units for layer in masks} == counts
            assert report.dropped == report.grown
            free = {layer.name: (layer.spec.units - layer.active_units) * layer.spec.unit_size for layer in masks}
            assert all(report.dropped[name] <= free[name] for name in free)


def test_erk_survives_rigl_on_resnet50() -> None:
    """One event of the config that people run: eight layers that ERK makes dense stay so, and all others too."""
    config = loading.load(ROOT / "configs" / "imagenet_rigl_erk.yaml")
    network = build_network(config, torch.device("cpu"))
    before = {layer.name: layer.active_weights for layer in network.masks}
    assert sum(layer.is_full for layer in network.masks) == 8
    method = build_method(config, [layer.spec for layer in network.masks])
    method.prepare(network.masks)
    for layer in network.masks:
        layer.weight.grad = torch.randn_like(layer.weight)
    reallocator = Reallocator(network.model, network.masks, method, torch.optim.SGD(network.model.parameters(), lr=0.1))
    step = int(config.method.period.at(0))  # type: ignore[union-attr]
    clock = Clock(step, 0, 5000, 100)
    seen = reallocator.before_step(clock)
    report = reallocator.after_step(clock, seen)
    assert report is not None
    assert sum(report.dropped.values()) > 100_000
    assert dict(report.active) == before


@pytest.mark.parametrize("name", ["deepr", "dsr", "rigl", "set", "sparse_momentum"])
def test_a_classifier_that_is_to_be_dense_stays_dense(name: str) -> None:
    """It has no mask at all, in the trainer as in the library."""
    raw = {
        "model": {"name": "small_cnn"},
        "method": {"name": name},
        "sparsity": {"conv": 0.9, "fc": 0.0},
        "data": {"name": "synthetic"},
    }
    network = build_network(loading.parse(raw), torch.device("cpu"))
    assert network.masks.layers
    assert all(layer.spec.kind == "conv" for layer in network.masks)
    assert network.model.get_parameter("fc.weight").count_nonzero() == network.model.get_parameter("fc.weight").numel()
