from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dynsparse.masks import sparse_layers
from dynsparse.masks.tying import SharedUnits, tie


def linear(inputs: int, bank: int, **options: bool) -> tuple[nn.Linear, nn.Parameter]:
    torch.manual_seed(0)
    model = nn.Linear(inputs, 1, bias=False)
    layer = tie(model, sparse_layers(model)[0], bank, seed=5, **options)
    return model, layer.weight


def test_worked_by_hand() -> None:
    """Ten weights, a bank of 3: used 4, 3 and 3 times. With inputs of 1 the output is the sum of the weights.

    So the gradient of each bank entry is its number of uses (4, 3, 3); rescaled it is 1.
    """
    model, bank = linear(10, 3)
    uses = [int((model.weight == value).sum()) for value in bank.detach()]
    assert sorted(uses) == [3, 3, 4]
    model(torch.ones(10)).backward()
    assert bank.grad is not None
    assert bank.grad.tolist() == uses
    model, bank = linear(10, 3, rescale_gradient=True)
    model(torch.ones(10)).backward()
    assert bank.grad is not None
    assert bank.grad.tolist() == [1, 1, 1]


def test_rescaling_takes_part_in_the_step() -> None:
    """The bank moves by lr times the rescaled gradient, in the very step; over two micro-batches it is divided once."""
    for micro_batches in (1, 2):
        model, bank = linear(10, 3, rescale_gradient=True)
        before = bank.detach().clone()
        optimizer = torch.optim.SGD([bank], lr=0.5)
        for _ in range(micro_batches):
            (model(torch.ones(10)) / micro_batches).backward()
        optimizer.step()
        assert torch.allclose(before - bank.detach(), torch.full((3,), 0.5), atol=1e-6)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10))
def test_every_bank_unit_is_used_equally_often_to_within_one(inputs: int, bank: int, seed: int) -> None:
    bank = min(bank, inputs)
    spec = sparse_layers(nn.Linear(inputs, 1))[0]
    uses = SharedUnits(spec, bank, seed, torch.device("cpu")).uses()
    assert int(uses.sum()) == inputs
    assert int(uses.max()) - int(uses.min()) <= 1


def test_the_shuffle_follows_the_seed_and_the_name() -> None:
    spec = sparse_layers(nn.Linear(40, 1))[0]
    cpu = torch.device("cpu")
    index = SharedUnits(spec, 8, 1, cpu).index
    assert torch.equal(index, SharedUnits(spec, 8, 1, cpu).index)
    assert not torch.equal(index, SharedUnits(spec, 8, 2, cpu).index)
    other = dataclasses.replace(spec, name="other")
    assert not torch.equal(index, SharedUnits(other, 8, 1, cpu).index)


@pytest.mark.parametrize(("granularity", "unit"), [(4, ()), (3, (3,)), (2, (3, 3)), (1, (4, 3, 3))])
def test_convolutions_share_whole_units(granularity: int, unit: tuple[int, ...]) -> None:
    model = nn.Conv2d(4, 6, 3)
    spec = sparse_layers(model, granularity=granularity)[0]  # type: ignore[arg-type]
    layer = tie(model, spec, 3, seed=0)
    assert layer.weight.shape == (3, *unit)
    units = model.weight.detach().reshape(spec.units, -1)
    assert len(torch.unique(units, dim=0)) == 3
    assert layer.active_weights == 3 * spec.unit_size
    model(torch.zeros(1, 4, 5, 5)).sum().backward()


def test_the_bank_begins_with_draws_of_the_layers_own_distribution() -> None:
    """Each entry is an initial weight of the layer, at a position that it stands for."""
    torch.manual_seed(0)
    model = nn.Linear(50, 4)
    before = model.weight.detach().clone()
    layer = tie(model, sparse_layers(model)[0], 20, seed=0)
    for value in layer.values():
        assert bool((before[model.weight == value] == value).any())


def test_the_index_is_in_no_checkpoint_and_a_copy_is_whole() -> None:
    model, bank = linear(10, 3)
    assert list(model.state_dict()) == ["parametrizations.weight.original"]
    assert [name for name, _ in model.named_parameters()] == ["parametrizations.weight.original"]
    again = copy.deepcopy(model)
    assert torch.equal(again.weight, model.weight)
