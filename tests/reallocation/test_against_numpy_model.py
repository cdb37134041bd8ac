"""The package's reallocation against an independent model of the algorithm, on networks that hypothesis makes up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.methods import Clock
from dynsparse.methods.dsr import DsrSettings
from dynsparse.reallocation import Reallocator
from tests.reallocation import numpy_model


@dataclass
class Case:
    shapes: list[tuple[int, int]]
    active: list[int]
    """Active units of each layer, from one to all."""
    magnitudes: list[float]
    """Few values to draw weights from, so that ties are the rule."""
    threshold: float
    target: int
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shapes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 8)), min_size=1, max_size=5))
    active = [
        draw(st.one_of(st.integers(1, a * b), st.just(a * b), st.just(1), st.just(max(1, a * b // 5))))
        for a, b in shapes
    ]
    magnitudes = draw(
        st.one_of(
            st.just([0.25, 0.5, 1.0]),
            st.lists(st.floats(0.0009765625, 2, width=32), min_size=1, max_size=12),
        )
    )
    threshold = draw(st.sampled_from([1e-6, 0.2, 0.25, 0.5, 0.75, 1.0, 100.0]))
    return Case(shapes, active, magnitudes, threshold, draw(st.integers(1, 60)), draw(st.integers(0, 2**31)))


def build(case: Case) -> tuple[nn.Module, MaskSet, torch.optim.SGD, Reallocator]:
    model = nn.ModuleList(nn.Linear(b, a, bias=False) for a, b in case.shapes)
    specs = sparse_layers(model)
    masks = MaskSet(model, specs, {s.name: k for s, k in zip(specs, case.active, strict=True)}, seed=case.seed)
    generator = np.random.default_rng(case.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for layer in masks:
        signs = generator.choice([-1.0, 1.0], layer.spec.units)
        values = torch.tensor(generator.choice(case.magnitudes, layer.spec.units) * signs, dtype=torch.float32)
        with torch.no_grad():
            layer.weight.copy_(values.view_as(layer.weight))
        optimizer.state[layer.weight] = {"momentum_buffer": torch.ones_like(layer.weight) * layer.mask}
    masks.apply_to_weights()
    method = DsrSettings(name="dsr", initial_threshold=case.threshold, target_moves=case.target).build()
    return model, masks, optimizer, Reallocator(model, masks, method, optimizer, seed=case.seed)


@given(cases(), st.integers(1, 4))
def test_reallocation_follows_the_description(case: Case, events: int) -> None:
    model, masks, optimizer, reallocator = build(case)
    threshold = case.threshold
    for event in range(1, events + 1):
        before = [layer.mask.view(-1).numpy() for layer in masks]
        weights = [layer.weight.detach().view(-1).numpy().copy() for layer in masks]
        expected = numpy_model.reallocate(weights, before, threshold, case.target)

        report = reallocator(Clock(step=event, epoch=0))

        for i, layer in enumerate(masks):
            after = layer.mask.view(-1).numpy()
            assert set(np.flatnonzero(before[i] & ~after)) == expected.dropped[i]
            grown = np.flatnonzero(after & ~before[i])
            assert len(grown) == expected.grown[i] == report.grown[layer.name]
            assert len(expected.dropped[i]) == report.dropped[layer.name]
            # What stays keeps value and momentum; what comes and goes is 0 in both.
            momentum = optimizer.state[layer.weight]["momentum_buffer"].view(-1).numpy()
            stays = before[i] & after
            assert np.array_equal(layer.weight.detach().view(-1).numpy(), np.where(stays, weights[i], 0))
            assert np.array_equal(momentum, stays.astype(np.float32))
            # Give grown weights a value, as training would, so that the next event has work.
            with torch.no_grad():
                layer.weight.view(-1)[grown] = case.magnitudes[0]
            momentum[grown] = 1
        masks.check()
        assert masks.active_weights == sum(case.active)
        assert report.scalars == {"threshold": threshold}
        threshold = expected.threshold
        assert reallocator.method.scalars() == {"threshold": threshold}


def test_the_model_shares_by_hand() -> None:
    """The yardstick itself: 10 over shares 1, 2, 4 with room 9, 1, 9 is 1, then 9 over 1:4 is 1.8, 7.2."""
    assert numpy_model.proportional(10, [1, 2, 4], [9, 1, 9]) == [2, 1, 7]
