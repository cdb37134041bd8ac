"""Methods from dense to sparse, worked by hand: GMP, AC/DC, GraNet."""

from __future__ import annotations

import torch
from torch import nn

from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.methods import Aim, Clock
from dynsparse.methods.acdc import AcdcSettings
from dynsparse.methods.dynamic import DynamicSettings
from dynsparse.methods.gmp import GmpSettings
from dynsparse.methods.granet import GranetSettings
from dynsparse.reallocation import Reallocator

WEIGHTS = {"0.weight": [[0.1, -0.9, 0.3, 0.2, -0.7]], "1.weight": [[0.4], [0.05], [-0.6], [0.8], [0.75]]}


def reallocated(settings: DynamicSettings, sparsity: float, at: Clock, *before: Clock) -> dict[str, list[int]]:
    """Active units of two layers of five weights, after the events at some clocks."""
    model = nn.Sequential(nn.Linear(5, 1, bias=False), nn.Linear(1, 5, bias=False))
    masks = MaskSet(model, sparse_layers(model), {"0.weight": 5, "1.weight": 5})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(WEIGHTS[name]))
            parameter.grad = torch.arange(5.0).view_as(parameter)
    method = settings.knowing(Aim({"conv": sparsity, "fc": sparsity})).build()
    method.prepare(masks)
    reallocator = Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=0.1))
    for clock in (*before, at):
        seen = reallocator.look(clock, masks)
        reallocator(clock, seen)
    return {layer.name: layer.active.tolist() for layer in masks}


def clock(progress: float, epoch: int = 0) -> Clock:
    return Clock(round(100 * progress), epoch, steps_per_epoch=10, epochs=10)


def test_gmp_layer_by_layer() -> None:
    """60 % of five are three: .1 .2 .3 go in the first layer, .05 .4 .6 in the second."""
    assert reallocated(GmpSettings(name="gmp"), 0.6, clock(0.8)) == {"0.weight": [1, 4], "1.weight": [3, 4]}


def test_gmp_by_one_threshold_leaves_layers_unequal() -> None:
    """40 % of ten are four: .05 .1 .2 .3, three of them in the first layer."""
    found = reallocated(GmpSettings(name="gmp", scope="global"), 0.4, clock(0.8))
    assert found == {"0.weight": [1, 4], "1.weight": [0, 2, 3, 4]}


def test_gmp_on_the_way() -> None:
    """A third of the way (0.25 of 0.75): 1 - (2/3)^3 = 19/27 of 0.6, that is 2.1 of five weights."""
    found = reallocated(GmpSettings(name="gmp"), 0.6, clock(0.25))
    assert found == {"0.weight": [1, 2, 4], "1.weight": [2, 3, 4]}


def test_acdc_in_turn() -> None:
    """Epochs 0, 2 and 4 are dense, 1 and 3 sparse, and all from 5 on. Before epoch 1 the six smallest of ten go."""
    density = {"name": "alternating", "warmup_epochs": 1, "sparse_epochs": 1, "dense_epochs": 1, "last_sparse_epoch": 5}
    settings = AcdcSettings(name="acdc", density=density)
    first, second = (Clock(10 * epoch + 10, epoch, steps_per_epoch=10, epochs=10) for epoch in (0, 1))
    assert reallocated(settings, 0.6, first) == {"0.weight": [1, 4], "1.weight": [3, 4]}
    assert reallocated(settings, 0.6, second, first) == {name: [0, 1, 2, 3, 4] for name in WEIGHTS}
    method = settings.knowing(Aim({"conv": 0.6, "fc": 0.6})).build()
    due = [step for step in range(1, 101) if method.is_due(Clock(step, (step - 1) // 10, 10, 10))]
    assert due == [10, 20, 30, 40, 50]


def test_granet_ends_its_pruning_as_its_authors_on_cifar() -> None:
    """110 of 160 epochs, from half dense, with half of what is left exchanged first."""
    settings = GranetSettings(name="granet")
    assert (settings.density.start, settings.fraction) == (0.5, 0.5)
    assert [settings.density.is_final(epoch / 160, epoch) for epoch in (109, 110)] == [False, True]


def test_granet_prunes_all_layers_by_one_threshold_and_regrows_in_each() -> None:
    """Prune to two of five weights a layer, which is 2.5 rounded: .05 .1 .2 .3 .4 .6 fall.

    Nothing was free before, so nothing grows in this event. At the next the density is the same, and a fraction of what
    each layer has is exchanged: 0.486 of two weights, which is one. -.7 and .75 go. Of those that were free before, 0 2
    3 in the first layer and 0 1 2 in the second, the last ones have the largest gradients.
    """
    settings = GranetSettings(name="granet", period=1, density={"name": "cubic", "end": 0.1})
    once, twice = clock(0.1), clock(0.11)
    assert reallocated(settings, 0.5, once) == {"0.weight": [1, 4], "1.weight": [3, 4]}
    assert reallocated(settings, 0.5, twice, once) == {"0.weight": [1, 3], "1.weight": [2, 3]}
