from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from benchmarks.parts.live_memory import Live
from benchmarks.parts.pieces import tensors_of
from dynsparse.masks import MaskSet, bits, sparse_layers
from dynsparse.masks.bits import unpack_bits
from dynsparse.masks.granularity import Granularity
from dynsparse.methods import Clock, deepr
from dynsparse.methods.deepr import DeepR, DeepRSettings
from dynsparse.reallocation import Reallocator
from dynsparse.schedules import StepTable
from dynsparse.seeds import random_bits, random_normal, seed_for
from tests.methods.hand import by_hand, set_weights, values

COLD = DeepRSettings(name="deepr", temperature=StepTable(((0, 0),)))


def test_worked_by_hand() -> None:
    """Signs are those of the weights in use at the start; a step then moves three of them.

    born     .3 -.2  .1 -.4  .5   0   0   0   0   0
    now      .3  .1   0 -.4 -.1   0   0   0   0   0     -.2 and .5 have crossed 0; .1 has only reached it
    Two are dropped (positions 1 and 4) and two grow among 5 to 9, at 0.
    """
    reallocator = by_hand(COLD, [[0.3, -0.2, 0.1, -0.4, 0.5, 0, 0, 0, 0, 0]])
    layer = reallocator.masks.layers[0]
    set_weights(layer, [0.3, 0.1, 0, -0.4, -0.1, 0, 0, 0, 0, 0])
    report = reallocator.after_step(Clock(1, 0))
    assert report is not None
    assert sum(report.dropped.values()) == sum(report.grown.values()) == 2
    assert layer.active[:3].tolist() == [0, 2, 3]
    assert min(layer.active[3:].tolist()) >= 5
    assert values(layer) == [0.3, 0, 0, -0.4, 0, 0, 0, 0, 0, 0]


def test_newborn_weights_have_a_random_sign_for_life() -> None:
    """About half of many new weights are negative, and each is dropped only when it moves to the other side."""
    n = 2000
    reallocator = by_hand(COLD, [[1.0] * n + [0.0] * 2 * n])
    layer = reallocator.masks.layers[0]
    set_weights(layer, [-1.0] * n + [0.0] * 2 * n)
    reallocator.after_step(Clock(1, 0))
    newborn = [i for i in layer.active.tolist() if i >= n]
    assert len(newborn) == n - 1, "all but the layer's last were dropped"
    method = reallocator.method
    born_negative = method.negative[layer.name].at(torch.tensor(newborn))  # type: ignore[attr-defined]
    assert 0.4 < float(born_negative.float().mean()) < 0.6
    with torch.no_grad():
        layer.weight[0, newborn] = 0.1
    dropped = method.drop_scores(layer)[-len(newborn) :] < -0.5
    assert torch.equal(dropped, born_negative)


def test_newborn_weights_that_are_drawn_keep_the_sign_of_the_draw() -> None:
    """`new_weights: initial`: nothing that has just been born has crossed."""
    settings = DeepRSettings(name="deepr", temperature=StepTable(((0, 0),)), new_weights="initial")
    reallocator = by_hand(settings, [[1.0] * 50 + [0.0] * 100])
    layer = reallocator.masks.layers[0]
    set_weights(layer, [-1.0] * 50 + [0.0] * 100)
    reallocator.after_step(Clock(1, 0))
    newborn = layer.active >= 50
    drawn = layer.values()[newborn]
    assert drawn.ne(0).all()
    assert (drawn < 0).any()
    assert (drawn > 0).any()
    assert not (reallocator.method.drop_scores(layer)[newborn] < -0.5).any()


def test_layers_and_steps_have_noise_of_their_own() -> None:
    settings = DeepRSettings(name="deepr", eta=1.0, temperature=StepTable(((0, 1.0),)))
    reallocator = by_hand(settings, [[1.0] * 20, [1.0] * 20])
    moved = []
    for step in (1, 2):
        before = [layer.values() for layer in reallocator.masks]
        reallocator.method.after_step(reallocator.masks, Clock(step, 0), seed=3)
        moved += [layer.values() - old for layer, old in zip(reallocator.masks, before, strict=True)]
    for i, one in enumerate(moved):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in moved[i + 1 :])


def test_a_unit_crosses_when_most_of_its_weights_do() -> None:
    """Kernel rows of 3, all born positive: one of three below 0 is not enough, two are."""
    model = nn.Conv2d(1, 2, 3, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    masks = MaskSet(model, sparse_layers(model, granularity=3), {"weight": torch.tensor([0, 1, 2])})
    method = COLD.build()
    method.prepare(masks)
    with torch.no_grad():
        model.weight[0, 0] = torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, 1, 1]])
    reallocator = Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=1.0))
    reallocator(Clock(1, 0))
    active = masks.layers[0].active.tolist()
    assert (0 in active, 1 in active, 2 in active) == (True, False, True)


@pytest.mark.parametrize("lr", [0.0, 1.0], ids=["lr 0", "lr 1"])
def test_noise_has_the_std_of_the_paper_whatever_the_learning_rate_and_momentum(lr: float) -> None:
    """sqrt(2 eta T) of eta 0.02 and T 0.25 is 0.1; without gradients all that moves the weights is noise."""
    n = 20_000
    settings = DeepRSettings(name="deepr", eta=0.02, temperature=StepTable(((0, 0.25), (1, 0.01))))
    model = nn.Linear(n, 2, bias=False)
    masks = MaskSet(model, sparse_layers(model), {"weight": torch.arange(n)})
    method = settings.build()
    method.prepare(masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for epoch, expected in ((0, 0.1), (1, 0.02)):
        before = model.weight.detach().clone()
        for step in (1, 2):
            model.weight.grad = torch.zeros_like(model.weight)
            optimizer.step()
            method.after_step(masks, Clock(2 * epoch + step, epoch), seed=0)
        moved = (model.weight.detach() - before)[0]
        assert float(moved.std()) == pytest.approx(expected * math.sqrt(2), rel=0.03), "two independent draws"
        assert abs(float(moved.mean())) < 0.005
        assert not model.weight[1].any(), "noise stays inside the mask"


def test_after_the_stop_epoch_weights_change_sign_freely_and_there_is_no_noise() -> None:
    settings = DeepRSettings(name="deepr", eta=1.0, stop_epoch=1)
    reallocator = by_hand(settings, [[0.3, -0.2, 0.1, 0, 0, 0, 0, 0]])
    layer = reallocator.masks.layers[0]
    set_weights(layer, [-0.3, 0.2, -0.1, 0, 0, 0, 0, 0])
    assert reallocator.after_step(Clock(9, 1)) is None
    assert values(layer) == [-0.3, 0.2, -0.1, 0, 0, 0, 0, 0]


HOT = DeepRSettings(name="deepr", eta=0.5, temperature=StepTable(((0, 1.0),)))


def convolutions(granularity: Granularity) -> tuple[nn.Module, MaskSet, DeepR]:
    """Three layers in channels-last memory, the second of them full."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(9, 7)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    specs = sparse_layers(model, granularity=granularity)
    masks = MaskSet(model, specs, {spec.name: spec.units // (1 if spec.name == "1.weight" else 3) for spec in specs})
    method = HOT.build()
    method.prepare(masks)
    return model, masks, method


@pytest.mark.parametrize("granularity", [4, 3, 2])
@pytest.mark.parametrize("at_once", [1, 8, 50, 1 << 20])
def test_pieces_are_the_whole(granularity: Granularity, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise, signs, scores and state are those of formulas over whole layers, whatever a piece's size."""
    for module in (deepr, bits):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
    model, masks, method = convolutions(granularity)
    clock = Clock(3, 0)
    born = {layer.name: layer.values() < 0 for layer in masks}
    expected = {}
    for layer in masks:
        size = layer.spec.unit_size
        numbers = (layer.active[:, None] * size + torch.arange(size)).view(-1)
        noise = random_normal(seed_for(9, "noise", 3, layer.name), numbers)
        expected[layer.name] = layer.values().add_(noise, alpha=1.0)
    method.after_step(masks, clock, seed=9)
    state = method.state_dict()["negative"]
    for layer in masks:
        values, is_negative = layer.values(), born[layer.name]
        assert torch.equal(values, expected[layer.name])
        assert torch.equal(unpack_bits(state[layer.name], layer.active_weights), is_negative)
        crossed = torch.where(is_negative, values > 0, values < 0).view(layer.active_units, -1).float().mean(1)
        assert torch.equal(method.drop_scores(layer), -crossed)
    masks.check()
    again = HOT.build()
    again.prepare(masks)  # Signs of other weights: the state brings back the first ones.
    again.load_state_dict({"negative": state})
    for layer in masks:
        assert torch.equal(again.born_negative(layer).view(-1), born[layer.name])
        units = layer.active[::2]
        again.begin(layer, units, torch.Generator().manual_seed(5))
        coins = random_bits(5, torch.arange(units.numel() * layer.spec.unit_size)) % 2 == 0
        assert torch.equal(again.born_negative(layer)[::2].reshape(-1), coins)


def test_memory_of_the_noise_does_not_grow_with_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One large layer, and many, take at most 80 bytes for each weight of a piece."""
    at_once = 1000
    for module in (deepr, bits):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
    for layers, side in ((1, 100), (20, 40)):
        model = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(layers)))
        specs = sparse_layers(model)
        masks = MaskSet(model, specs, {spec.name: spec.units for spec in specs})
        method = HOT.build()
        known = [*model.parameters(), *tensors_of([masks])]
        with torch.no_grad(), Live(known) as prepared:
            method.prepare(masks)
        with Live([*known, *tensors_of([method])]) as live:
            method.after_step(masks, Clock(1, 0), seed=0)
        assert prepared.extra <= 80 * at_once
        assert 40 * at_once <= live.extra <= 80 * at_once


def test_small_layers_draw_their_noise_together() -> None:
    """Forty layers take fewer random streams than two did alone."""
    calls: list[int] = []
    real = deepr.random_normal

    def counted(seeds: Tensor | int, places: Tensor) -> Tensor:
        calls.append(len(places))
        return real(seeds, places)

    model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(40)))
    specs = sparse_layers(model)
    masks = MaskSet(model, specs, {spec.name: 7 for spec in specs})
    method = HOT.build()
    method.prepare(masks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deepr, "random_normal", cast(Any, counted))
        method.after_step(masks, Clock(1, 0), seed=0)
    assert calls == [40 * 7]
