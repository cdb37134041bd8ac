"""Rounds of several optimizers under one GradScaler, which skips some of their steps: one iteration is one round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn, optim
from torch.amp import GradScaler

from dynsparse import SparseTraining
from tests.small_mlp import loss_of, mlp, outside, state_outside

SCALE = 2.0**10
PLACES = 0, 2


class Loop:
    """An ordinary loop over a model with an optimizer for each layer, a scaler and clipping if asked for."""

    def __init__(
        self, method: Any, *, fused: bool = False, order: Sequence[int] = (0, 1), prepare: bool = False
    ) -> None:
        self.model = mlp()
        self.optimizers = [optim.AdamW(self.model[place].parameters(), lr=0.01, fused=fused) for place in PLACES]
        self.scaler = GradScaler("cpu", init_scale=SCALE)
        self.reports: list[Any] = []
        self.sparse = SparseTraining(
            self.model, self.optimizers, method, sparsity=0.9, total_steps=40, on_reallocation=self.reports.append
        )
        self.order, self.prepare = order, prepare

    def iterate(self, number: int, skipped: Sequence[int] = ()) -> list[Tensor]:
        """Make one iteration, with an infinity in the gradients of some layers. Returns their true gradients."""
        self.model.zero_grad()
        self.scaler.scale(loss_of(self.model, number)).backward()
        layers = self.sparse.masks.layers
        gradients = [_gradient(layer.weight) / self.scaler.get_scale() for layer in layers]
        for place in skipped:
            _gradient(layers[place].weight)[:] = float("inf")
        ordered = [self.optimizers[place] for place in self.order]
        if self.prepare:
            for optimizer in ordered:
                self.scaler.unscale_(optimizer)
            self.sparse.prepare_gradients()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1e9)
        for optimizer in ordered:
            self.scaler.step(optimizer)
            assert outside(self.sparse) == 0
        self.scaler.update()
        assert state_outside(self.sparse, *self.optimizers) == 0
        return gradients


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


ways = pytest.mark.parametrize("prepare", [False, True], ids=["", "prepared"])
kinds = pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
orders = pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "reversed"])
one = pytest.mark.parametrize("skipped", [0, 1])


@ways
@kinds
@orders
@one
def test_a_method_learns_what_was_used_at_its_true_size(
    skipped: int, order: tuple[int, int], fused: bool, prepare: bool
) -> None:
    loop = Loop({"name": "sparse_momentum", "period": 4, "momentum": 0.5}, fused=fused, order=order, prepare=prepare)
    expected = [torch.zeros_like(layer.weight) for layer in loop.sparse.masks]
    for number in range(8):
        left_out = [skipped] if number in (1, 4) else []
        gradients = loop.iterate(number, left_out)
        assert loop.sparse.steps == number + 1
        for place, momentum in enumerate(expected):
            if place not in left_out:
                momentum.mul_(0.5).add_(gradients[place])
    for momentum, layer in zip(expected, loop.sparse.masks, strict=True):
        assert torch.equal(loop.sparse.method.learnt(layer)[0], momentum)


@ways
@kinds
@orders
@one
def test_events_after_a_skipped_step_move_all_layers(
    skipped: int, order: tuple[int, int], fused: bool, prepare: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The second iteration is just before an event."""
    method = {"name": "rigl", "period": 3, "until": 1.0}
    loop = Loop(method, fused=fused, order=order, prepare=prepare)
    for number in range(9):
        loop.iterate(number, [skipped] if number == 1 else [])
        assert loop.sparse.steps == number + 1
    assert [report.step for report in loop.reports] == [3, 6, 9]
    assert all(min(report.dropped.values()) > 0 for report in loop.reports)
    assert caplog.messages == []


@ways
@kinds
@orders
@one
def test_a_layer_whose_step_is_skipped_at_an_event_rests(
    skipped: int, order: tuple[int, int], fused: bool, prepare: bool
) -> None:
    """Its gradients were not used, so nothing grows by them."""
    loop = Loop({"name": "rigl", "period": 3, "until": 1.0}, fused=fused, order=order, prepare=prepare)
    for number in range(6):
        loop.iterate(number, [skipped] if number == 2 else [])
    first, second = ([count > 0 for count in report.dropped.values()] for report in loop.reports)
    assert first == [place != skipped for place in (0, 1)]
    assert second == [True, True]


@kinds
@ways
def test_a_round_in_which_all_skip_does_not_count(prepare: bool, fused: bool) -> None:
    loop = Loop({"name": "rigl", "period": 3, "until": 1.0}, fused=fused, prepare=prepare)
    counted = []
    for number in range(8):
        loop.iterate(number, [0, 1] if number in (1, 2) else [])
        counted.append(loop.sparse.steps)
    assert counted == [1, 1, 1, 2, 3, 4, 5, 6]
    assert all(min(report.dropped.values()) > 0 for report in loop.reports)


iterations = st.tuples(st.permutations([0, 1]), st.lists(st.sampled_from([0, 1]), unique=True))


@settings(max_examples=20, deadline=None)
@given(st.lists(iterations, min_size=1, max_size=8), st.booleans(), st.booleans())
def test_each_iteration_with_a_step_counts_once(
    rounds: list[tuple[list[int], list[int]]], fused: bool, prepare: bool
) -> None:
    """Whatever the order of the optimizers, and whichever of them are skipped."""
    loop = Loop({"name": "sparse_momentum", "period": 2}, fused=fused, prepare=prepare)
    made = 0
    for number, (order, skipped) in enumerate(rounds):
        loop.order = order
        loop.iterate(number, skipped)
        made += len(skipped) < 2
        assert loop.sparse.steps == made
    assert [report.step for report in loop.reports] == list(range(2, made + 1, 2))


def test_a_loop_that_tries_again_after_a_skipped_step() -> None:
    """The first optimizer takes a second turn before the other one has any."""
    loop = Loop({"name": "set", "period": 2})
    for number in range(4):
        for scale in (float("inf"), 1.0):
            loop.model.zero_grad()
            loop.scaler.scale(loss_of(loop.model, number) * scale).backward()
            loop.scaler.step(loop.optimizers[0])
            if scale == 1.0:
                loop.scaler.step(loop.optimizers[1])
            loop.scaler.update()
        assert (loop.sparse.steps, outside(loop.sparse)) == (number + 1, 0)


def test_a_generator_and_a_critic_whose_step_is_skipped() -> None:
    """Two backward passes, each with its own step, are one round, also if the scaler skips one of the steps."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"generator": nn.Linear(8, 16, bias=False), "critic": nn.Linear(16, 8, bias=False)})
    optimizers = {name: optim.SGD(part.parameters(), lr=0.1) for name, part in model.items()}
    method = {"name": "sparse_momentum", "period": 3, "momentum": 0.5}
    sparse = SparseTraining(model, list(optimizers.values()), method, sparsity=0.5, total_steps=100)
    scaler = GradScaler("cpu", init_scale=SCALE)
    expected = {f"{name}.weight": torch.zeros_like(part.weight) for name, part in model.items()}
    for number in range(8):
        noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(number))
        for name in ("critic", "generator"):
            optimizers[name].zero_grad()
            scaler.scale(model["critic"](model["generator"](noise)).square().mean()).backward()
            weight = model[name].weight
            if (number, name) in ((2, "critic"), (5, "generator")):
                _gradient(weight)[0] = float("inf")
            else:
                expected[f"{name}.weight"].mul_(0.5).add_(_gradient(weight) / scaler.get_scale())
            scaler.step(optimizers[name])
            scaler.update()
        assert sparse.steps == number + 1
    for layer in sparse.masks:
        assert torch.allclose(sparse.method.learnt(layer)[0], expected[layer.name])
