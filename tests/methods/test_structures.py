"""Methods under a pattern of the masks: as many in each group after every event, whatever the rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dynsparse import SparseTraining
from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, MaskSet, sparse_layers
from dynsparse.masks.structure import groups_of
from dynsparse.methods.base import require_method
from dynsparse.methods.clock import Clock
from dynsparse.methods.dynamic import DynamicSettings
from dynsparse.methods.srigl import SriglSettings
from dynsparse.reallocation import Reallocator
from tests.methods.stepping import assert_ranks_agree, stepped
from tests.methods.test_contract import BUSY, REGISTRY, STEPS, Run, settings_named

NAMES = [name for name in sorted(BUSY) if name not in ("nm", "srigl") and not settings_named(name, 0.5).build().trades]
STRUCTURES = ["fan_in", "1:2"]


def groups(run: Run) -> list[list[int]]:
    """Active units of each group of each layer."""
    found = []
    for layer in run.masks:
        of_layer = groups_of(layer.spec)
        assert of_layer is not None
        found.append(of_layer.of((~layer.inactive).reshape(layer.spec.units, -1)[:, 0]).sum(1).tolist())
    return found


def density_options(name: str) -> dict[str, Any]:
    """The method from dense to sparse, where it can be."""
    course = {"name": "cubic", "end": 0.5}
    return {"density": course} if issubclass(REGISTRY[name], DynamicSettings) else {}


@pytest.mark.parametrize("changing", [False, True], ids=["one density", "falling density"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", NAMES)
def test_every_group_has_as_many_at_every_step(name: str, structure: str, changing: bool) -> None:
    options = {"structure": structure, **(density_options(name) if changing else {})}
    for _, run in stepped(name, 4, 0.5, **options):
        assert all(len(set(counts)) == 1 for counts in groups(run)), groups(run)
    assert run.moved > 0
    if structure == "1:2" and name != "pruning":
        assert all(set(counts) == {1} for counts in groups(run))


@pytest.mark.parametrize("name", NAMES)
def test_slices_with_a_constant_fan_in(name: str) -> None:
    run = Run(name, 2, 0.5, "sgd", structure="fan_in")
    for number in range(1, STEPS + 1):
        run.step(number)
        assert all(len(set(counts)) == 1 for counts in groups(run)), groups(run)


def test_ranks_agree() -> None:
    assert_ranks_agree([(name, {"structure": one}) for name in NAMES for one in STRUCTURES], sparsity=0.5)


@pytest.mark.parametrize("granularity", [4, 2])
@pytest.mark.parametrize("ablation", [0.0, 0.5, 0.9])
def test_srigl_has_neurons_of_one_fan_in_and_neurons_that_are_out(ablation: float, granularity: int) -> None:
    run = Run("srigl", granularity, 0.5, "sgd", ablation=ablation)
    out: list[set[int]] = [set() for _ in run.masks]
    for number in range(1, STEPS + 1):
        run.step(number)
        for found, counts in zip(out, groups(run), strict=True):
            assert len(set(counts) - {0}) == 1, counts
            now = {row for row, count in enumerate(counts) if not count}
            assert found <= now, "what is out stays out"
            assert not now or found is not out[-1], "the last layer's are the classes"
            found |= now
    assert run.moved > 0
    if ablation != 0.5:
        assert any(out) == (ablation == 0.9)


def test_srigl_worked_by_hand() -> None:
    """Three neurons of four inputs, two active each; two of the six weights are to move, and half must be salient.

    weights        .9 .8  .  .    .1 .2  .  .    .5 .4  .  .    the smallest two are .1 and .2
    |gradients|     .  .  1  2     .  .  3  4     .  .  9  8    the largest two are 9 and 8
    salient         2 + 0          0 + 0          2 + 2         the second neuron has none: it goes out
    fan-in          6 weights / 2 neurons = 3
    """
    model = nn.Linear(4, 3, bias=False)
    masks = MaskSet(model, sparse_layers(model, structure="fan_in"), {"weight": torch.tensor([0, 1, 4, 5, 8, 9])})
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.9, 0.8, 0, 0], [0.1, 0.2, 0, 0], [0.5, 0.4, 0, 0]]))
    model.weight.grad = torch.tensor([[0.0, 0, 1, 2], [0, 0, 3, 4], [0, 0, 9, 8]])
    settings = {"period": 1, "fraction": 1 / 3, "ablation": 0.5, "until": 1.0, "keep_neurons": []}
    method = SriglSettings(name="srigl", **settings).build()
    method.prepare(masks)
    reallocator = Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=1.0))
    clock = Clock(1, 0, steps_per_epoch=10_000, epochs=1)
    reallocator(clock, reallocator.before_step(clock))
    assert masks.layers[0].active.tolist() == [0, 1, 3, 8, 9, 10], "each of the two grows its largest gradient"


def test_srigl_needs_its_structure() -> None:
    layer = LayerSpec("w", "fc", (4, 8), 2)
    with pytest.raises(UserError, match=r"sparsity\.structure is free: set it to fan_in"):
        require_method(SriglSettings(name="srigl").build(), "srigl", [layer], {"w": 16})


def test_methods_whose_layers_trade_are_refused() -> None:
    layer = LayerSpec("w", "fc", (4, 8), 2, structure="2:4")
    with pytest.raises(UserError, match=r"^method dsr moves weights between layers, and sparsity\.structure 2:4 keeps"):
        require_method(REGISTRY["dsr"](name="dsr").build(), "dsr", [layer], {"w": 16})
    require_method(REGISTRY["dsr"](name="dsr", scaling=False, target_moves=2).build(), "dsr", [layer], {"w": 16})


def test_in_a_loop_of_ones_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    SparseTraining(model, optimizer, {"name": "rigl", "period": 2}, sparsity=0.5, structure="2:4", total_steps=8)
    for _ in range(8):
        nn.functional.cross_entropy(model(torch.randn(6, 16)), torch.randint(4, (6,))).backward()
        optimizer.step()
        optimizer.zero_grad()
        for linear in (model[0], model[2]):
            nonzero = linear.weight.detach().ne(0).reshape(-1, 4).sum(1)
            assert int(nonzero.max()) <= 2
    with pytest.raises(UserError, match=r"structure: is '2:2'; it must be free, fan_in, or N:M"):
        SparseTraining(model, optimizer, "rigl", sparsity=0.5, structure="2:2", total_steps=8)
