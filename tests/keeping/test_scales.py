"""Gradients that still have the factor of a GradScaler: nothing is learnt at that size, or the order is refused.

Factors are powers of 2, so that runs with and without a scaler agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, optim
from torch.amp import GradScaler

from benchmarks.parts.live_memory import as_on_gpu
from dynsparse import SparseTraining
from dynsparse.errors import UserError
from dynsparse.masks import SparseLayer, block
from dynsparse.masks.selection import Cut, cuts_fraction
from dynsparse.methods import Clock, Method
from dynsparse.methods.base import in_parts
from tests.small_mlp import loss_of, mlp, outside

SCALE = 65536.0
STEPS = 6
METHODS: dict[str, Any] = {
    "rigl": {"name": "rigl", "period": 2, "until": 1.0},
    "sparse_momentum": {"name": "sparse_momentum", "period": 2},
    "topkast": {"name": "topkast", "period": 2},
}
KINDS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
    "fused sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "fused adamw": lambda p: optim.AdamW(p, lr=0.01, fused=True),
}


class Floored(Method):
    """Grows by a rule that a factor changes: |gradient| with a random floor. It moves weights in every step."""

    def is_due(self, clock: Clock) -> bool:
        return True

    @in_parts
    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        return cuts_fraction(scores, 0.3)

    @in_parts
    def grow_scores(self, layer: SparseLayer) -> Tensor:
        assert layer.weight.grad is not None and layer.gradient is not None
        assert torch.equal(layer.weight.grad, layer.gradient)
        return layer.unit_means(layer.weight.grad.abs().clamp(min=1e-3))


def method_of(name: str) -> Any:
    return Floored() if name == "floored" else METHODS[name]


def everything(sparse: SparseTraining, *optimizers: optim.Optimizer) -> list[Tensor]:
    """Masks, weights, what optimizers keep, and what the method has learnt."""
    found = [layer.active for layer in sparse.masks] + [layer.weight.detach() for layer in sparse.masks]
    states = [optimizer.state[layer.parameter] for optimizer in optimizers for layer in sparse.masks]
    found += [value for state in states for value in state.values() if isinstance(value, Tensor)]
    found += list(getattr(sparse.method, "momentum", {}).values())
    reserve = sparse.method.reserve
    return found + [part.values for part in (reserve.layers.values() if reserve else ())]


def trained(
    method: str, kind: str, *, scale: float | None, prepare: str = "", apart: bool = False, **options: Any
) -> list[Tensor]:
    """Train by a scaler, or plainly. `prepare`: when gradients are prepared. `apart`: an optimizer for each layer."""
    model = mlp()
    parts = [model[0].parameters(), model[2].parameters()] if apart else [model.parameters()]
    optimizers = [KINDS[kind](part) for part in parts]
    sparse = SparseTraining(model, optimizers, method_of(method), sparsity=0.9, total_steps=20, **options)
    scaler = GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    for number in range(STEPS):
        model.zero_grad()
        scaler.scale(loss_of(model, number)).backward()
        if prepare == "before":
            sparse.prepare_gradients()
        if "unscaled" in prepare:
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
        if prepare == "unscaled":
            sparse.prepare_gradients()
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
    assert (sparse.steps, outside(sparse)) == (STEPS, 0)
    return everything(sparse, *optimizers)


@pytest.mark.parametrize("prepare", ["", "unscaled"])
@pytest.mark.parametrize("apart", [False, True], ids=["", "apart"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [*METHODS, "floored"])
def test_a_scaler_changes_nothing(method: str, kind: str, apart: bool, prepare: str) -> None:
    """Runs agree, also where one optimizer steps before the gradients of another are unscaled."""
    plain = trained(method, kind, scale=None, apart=apart)
    scaled = trained(method, kind, scale=SCALE, apart=apart, prepare=prepare)
    assert all(map(torch.equal, plain, scaled))


@pytest.mark.parametrize("apart", [False, True], ids=["", "apart"])
@pytest.mark.parametrize("kind", ["fused sgd", "fused adamw"])
@pytest.mark.parametrize("method", [*METHODS, "floored"])
def test_a_fused_optimizer_tells_the_factor_after_the_look(method: str, kind: str, apart: bool) -> None:
    """It is told at the step, and `prepare_gradients` has looked before: also in the very first step."""
    plain = trained(method, kind, scale=None, apart=apart)
    assert all(map(torch.equal, plain, trained(method, kind, scale=SCALE, apart=apart, prepare="before")))
    assert all(map(torch.equal, plain, trained(method, kind, scale=None, apart=apart, prepare="before")))


@pytest.mark.parametrize("unscales", [False, True], ids=["in step", "before"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [*METHODS, "floored"])
def test_looking_before_the_factor_is_removed_is_refused(method: str, kind: str, unscales: bool) -> None:
    """Accelerate's clip_grad_norm_ unscales, so it comes too late after `prepare_gradients`.

    It is found at the first gradients that the method reads. A fused optimizer unscales in its own step, and tells.
    """
    model = mlp()
    optimizer = KINDS[kind](model.parameters())
    sparse = SparseTraining(model, optimizer, method_of(method), sparsity=0.9, total_steps=20)
    scaler = GradScaler("cpu", init_scale=SCALE)
    for number in range(1 if method == "rigl" else 0):
        scaler.scale(loss_of(model, number)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    scaler.scale(loss_of(model)).backward()
    sparse.prepare_gradients()
    if "fused" in kind and not unscales:
        scaler.step(optimizer)
        return
    with pytest.raises(UserError) as raised:
        scaler.unscale_(optimizer) if unscales else scaler.step(optimizer)
    assert str(raised.value) == (
        "0.weight was looked at while its gradient still had the factor of a GradScaler: before prepare_gradients() "
        "call scaler.unscale_(optimizer) (Accelerate: accelerator.unscale_gradients()), after it clip by torch.nn.utils"
    )


def test_a_fused_optimizer_that_is_scaled_late_is_refused() -> None:
    """Its first steps came without a scaler, so that its gradients were taken as they were."""
    model = mlp()
    optimizer = KINDS["fused adamw"](model.parameters())
    sparse = SparseTraining(model, optimizer, METHODS["sparse_momentum"], sparsity=0.9, total_steps=20)
    for number in range(2):
        scaler = GradScaler("cpu", init_scale=SCALE, enabled=number == 1)
        optimizer.zero_grad()
        scaler.scale(loss_of(model, number)).backward()
        sparse.prepare_gradients()
        if number == 0:
            scaler.step(optimizer)
        else:
            with pytest.raises(UserError, match=r"still had the factor of a GradScaler"):
                scaler.step(optimizer)


def test_where_nothing_is_read_the_order_is_free() -> None:
    model = mlp()
    optimizer = KINDS["adamw"](model.parameters())
    sparse = SparseTraining(model, optimizer, {"name": "set", "period": 2}, sparsity=0.9, total_steps=20)
    scaler = GradScaler("cpu", init_scale=SCALE)
    for number in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, number)).backward()
        sparse.prepare_gradients()
        scaler.step(optimizer)
        scaler.update()
    assert (sparse.steps, outside(sparse)) == (4, 0)


def test_an_optimizer_that_steps_beside_the_scaler_is_refused() -> None:
    model = mlp()
    optimizers = [KINDS["adamw"](model[place].parameters()) for place in (0, 2)]
    SparseTraining(model, optimizers, METHODS["sparse_momentum"], sparsity=0.9, total_steps=20)
    scaler = GradScaler("cpu", init_scale=SCALE)
    scaler.scale(loss_of(model)).backward()
    scaler.step(optimizers[0])
    with pytest.raises(UserError) as raised:
        optimizers[1].step()
    assert str(raised.value) == (
        "2.weight makes a step without the GradScaler that other weights of this model use, and its gradient was taken "
        "to have the same factor: step all its optimizers by scaler.step(), or unscale_ all of them before the first"
    )


def test_after_a_step_that_is_skipped_the_right_order_goes_on() -> None:
    """Facts of the skipped round do not stay: its factor is another one, and its gradients are gone."""
    ends = []
    for overflow in (False, True):
        model = mlp()
        optimizer = KINDS["adamw"](model.parameters())
        sparse = SparseTraining(model, optimizer, METHODS["sparse_momentum"], sparsity=0.9, total_steps=20)
        scaler = GradScaler("cpu", init_scale=SCALE)
        for number in [0, 1, *([99] if overflow else []), 2, 3]:
            optimizer.zero_grad()
            scaler.scale(loss_of(model, number) * (float("inf") if number == 99 else 1)).backward()
            scaler.unscale_(optimizer)
            sparse.prepare_gradients()
            scaler.step(optimizer)
            scaler.update()
        assert sparse.steps == 4
        ends.append(everything(sparse, optimizer))
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("kind", ["sgd", "fused sgd"])
@pytest.mark.parametrize("prepare", [False, True], ids=["", "unscaled"])
def test_the_factor_is_removed_where_an_optimizer_rests(prepare: bool, kind: str) -> None:
    """The second one steps every other time. A round without it ends when gradients of the next one are there."""
    model = mlp()
    optimizers = [KINDS[kind](model[place].parameters()) for place in (0, 2)]
    settings = {"name": "sparse_momentum", "period": 4, "momentum": 0.5}
    sparse = SparseTraining(model, optimizers, settings, sparsity=0.9, total_steps=20)
    scaler = GradScaler("cpu", init_scale=SCALE)
    expected = [torch.zeros_like(layer.weight) for layer in sparse.masks]
    for number in range(8):
        turn = optimizers[: 1 + number % 2]
        model.zero_grad()
        scaler.scale(loss_of(model, number)).backward()
        for momentum, layer, _ in zip(expected, sparse.masks, turn, strict=False):
            assert layer.weight.grad is not None
            momentum.mul_(0.5).add_(layer.weight.grad / SCALE)
        if prepare:
            for optimizer in turn:
                scaler.unscale_(optimizer)
            sparse.prepare_gradients()
        for optimizer in turn:
            scaler.step(optimizer)
        scaler.update()
    assert (sparse.steps, outside(sparse)) == (8, 0)
    for momentum, layer in zip(expected, sparse.masks, strict=True):
        assert torch.equal(sparse.method.learnt(layer)[0], momentum)


class ByWeights(Floored):
    """Grows by gradients and weights, and keeps the scores."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def grow_scores(self, layer: SparseLayer) -> Tensor:
        assert layer.gradient is not None
        self.scores.append(layer.unit_means(layer.gradient.abs() + layer.weight.detach().abs()).clone())
        return self.scores[-1]


@pytest.mark.parametrize("prepare", [False, True], ids=["", "prepared"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_factor_comes_where_a_closure_makes_the_gradients(kind: str, prepare: bool) -> None:
    """A GradScaler takes no closures: growth is scored at once, before the step moves weights, and no copies wait."""
    found = []
    for with_closure in (False, True):
        model, method = mlp(), ByWeights()
        optimizer = KINDS[kind](model.parameters())
        sparse = SparseTraining(model, optimizer, method, sparsity=0.9, total_steps=20)
        for number in range(3):

            def closure(model=model, sparse=sparse, number=number) -> Tensor:  # type: ignore[no-untyped-def]
                model.zero_grad()
                loss = loss_of(model, number)
                loss.backward()
                if prepare:
                    sparse.prepare_gradients()
                return loss

            if with_closure:
                optimizer.step(closure)
                assert len(method.scores) == 2 * number + 2
            else:
                closure()
                optimizer.step()
        found.append(method.scores + everything(sparse, optimizer))
    assert all(map(torch.equal, *found))


def test_no_copies_wait_where_a_closure_makes_the_gradients() -> None:
    model = mlp()
    optimizer = KINDS["fused sgd"](model.parameters())
    sparse = SparseTraining(model, optimizer, METHODS["rigl"], sparsity=0.9, total_steps=20)
    waiting: list[int] = []

    def closure() -> Tensor:
        model.zero_grad()
        loss = loss_of(model)
        loss.backward()
        sparse.prepare_gradients()
        waiting.append(len(sparse._gradients.seen.unscored))
        return loss

    def inside(*_: Any) -> None:
        waiting.append(len(sparse._gradients.seen.unscored))

    optimizer.register_step_post_hook(inside)
    for _ in range(4):
        optimizer.step(closure)
    assert waiting == [0] * 8


@pytest.mark.parametrize("prepare", ["", "before"])
@pytest.mark.parametrize("options", [{}, {"split": {"0.weight": 2}}], ids=["whole", "split"])
def test_large_layers_are_scored_in_parts_at_their_true_size(
    options: dict[str, Any], prepare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained("floored", "fused adamw", scale=None, **options)
    monkeypatch.setattr(block, "ON_GPU", 1_000)
    monkeypatch.setattr(block, "A_PART", 500)
    with as_on_gpu():
        scaled = trained("floored", "fused adamw", scale=SCALE, prepare=prepare, **options)
    assert all(map(torch.equal, plain, scaled))
