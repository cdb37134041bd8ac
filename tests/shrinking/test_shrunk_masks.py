"""Masks, records and optimizer state of networks that have lost channels, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn, optim

from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.granularity import Granularity
from dynsparse.shrinking.kept import Kept, Shrinkage, shrinkages_in
from dynsparse.shrinking.moments import follow
from dynsparse.shrinking.shrunk_masks import shrunk_masks


def at(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def masks_of(model: nn.Module, active: dict[str, Tensor], granularity: Granularity = 4) -> MaskSet:
    return MaskSet(model, sparse_layers(model, granularity=granularity), active)


LOST = Shrinkage(3, {"0": Kept(at(0, 2)), "1": Kept(None, at(0, 2))})


def test_what_went_grows_in_its_layer() -> None:
    """Output 1 goes with its two weights. Two of the three free places that are left of [2, 3] become active."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    masks = masks_of(model, {"0.weight": at(0, 3, 4, 7, 8), "1.weight": at(0, 2, 3)})
    LOST.apply(model)
    found = shrunk_masks(masks, model, LOST, seed=0)
    first, second = found.masks
    assert first.spec.shape == (2, 3) and second.spec.shape == (2, 2)
    assert set(first.active.tolist()) == {0, 4, 5} | set(found.grown[0].tolist())
    assert (first.active_units, second.active_units) == (5, 3)
    assert second.active.tolist() == [0, 1, 2] and found.grown[1].numel() == 0
    assert found.masks.budget == masks.budget == 8
    found.masks.check()
    again = shrunk_masks(masks, model, LOST, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(found.grown, again.grown, strict=True))


def test_what_has_no_room_in_its_layer_grows_in_others() -> None:
    """Three of 9 active weights go, and the layer is full with 6. The other one takes one, at its only free place."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    masks = masks_of(model, {"0.weight": torch.arange(9), "1.weight": at(0, 2, 3)})
    LOST.apply(model)
    found = shrunk_masks(masks, model, LOST, seed=0).masks
    assert [layer.active_weights for layer in found] == [6, 4]
    assert found.budget == found.active_weights == 10  # Of 12: there is no room for more.


def test_a_frozen_layer_takes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    masks = masks_of(model, {"0.weight": torch.arange(9), "1.weight": at(0)})
    model[1].weight.requires_grad_(False)
    LOST.apply(model)
    found = shrunk_masks(masks, model, LOST, seed=0).masks
    assert [layer.active_weights for layer in found] == [6, 1]
    assert not model[1].weight.requires_grad


def test_a_frozen_layer_that_loses_all_keeps_one_within_the_budget() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    masks = masks_of(model, {"0.weight": at(0, 1), "1.weight": at(1, 4)})
    model[1].weight.requires_grad_(False)
    LOST.apply(model)
    found = shrunk_masks(masks, model, LOST, seed=0).masks
    assert [layer.active_weights for layer in found] == [3, 1]
    assert found.budget == 4
    found.check()


def test_what_was_explored_stays_so() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    masks = masks_of(model, {"0.weight": at(0, 8), "1.weight": at(0)})
    masks.set_active(masks.layers[0], at(1, 4))
    LOST.apply(model)
    found = shrunk_masks(masks, model, LOST, seed=0)
    assert set(found.masks.layers[0].explored.nonzero().flatten().tolist()) == {0, 1, 5} | set(found.grown[0].tolist())


@pytest.mark.parametrize(("granularity", "active"), [(1, at(0, 1)), (2, at(0, 4, 5)), (3, at(0, 13, 15))])
def test_whole_units_stay_and_grow(granularity: Granularity, active: Tensor) -> None:
    """A convolution [3, 3, 3, 3] that loses output 1 and input 1."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3))
    masks = masks_of(model, {"0.weight": active}, granularity)
    shrinkage = Shrinkage(1, {"0": Kept(at(0, 2), at(0, 2))})
    shrinkage.apply(model)
    found = shrunk_masks(masks, model, shrinkage, seed=0).masks
    found.check()
    assert found.layers[0].spec.shape == (2, 2, 3, 3)
    room = found.layers[0].spec.weights
    assert masks.active_weights - found.layers[0].spec.unit_size < found.active_weights or found.active_weights == room


def test_a_record_applies_to_a_fresh_network_and_names_another() -> None:
    """A depthwise convolution keeps a group for each channel; counters without dimensions stay."""
    layers = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1)
    model = nn.Sequential(*layers)
    kept = at(1, 3)
    modules = {"0": Kept(kept), "1": Kept(kept), "2": Kept(kept), "3": Kept(None, kept)}
    (record,) = shrinkages_in({"shrinkages": [Shrinkage(2, modules).state()]})
    weight = layers[0].weight.detach().clone()
    record.apply(model)
    assert torch.equal(layers[0].weight, weight[kept])
    assert (layers[2].groups, layers[2].in_channels, layers[1].num_features, layers[3].in_channels) == (2, 2, 2, 2)
    assert model(torch.randn(2, 3, 5, 5)).shape == (2, 2, 3, 3)
    with pytest.raises(UserError) as caught:
        record.apply(nn.Sequential(nn.Conv2d(3, 3, 1)))
    assert str(caught.value) == (
        "the checkpoint is of another model: it has made 0 smaller, and that is absent or too small here; use the "
        "config that it was made with"
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_moments_go_with_their_weights(channels_last: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    (old, bias), before = model.parameters(), dict(optimizer.state[model[0].weight])
    shrinkage = Shrinkage(1, {"0": Kept(at(0, 3), at(1))})
    follow(optimizer, shrinkage.apply(model))
    new = model[0].weight
    assert [id(one) for one in optimizer.param_groups[0]["params"]] == [id(one) for one in model.parameters()]
    assert old not in optimizer.state and bias not in optimizer.state
    assert torch.equal(optimizer.state[new]["exp_avg"], before["exp_avg"][[0, 3]][:, [1]])
    assert optimizer.state[new]["exp_avg_sq"].stride() == new.stride()
    assert optimizer.state[new]["step"] == 1
    assert optimizer.state[model[0].bias]["exp_avg"].shape == (2,)
