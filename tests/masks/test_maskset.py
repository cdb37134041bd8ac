from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.allocation import uniform
from dynsparse.masks.granularity import Granularity
from dynsparse.masks.layer import FEW


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 5)
    )


def masked(
    granularity: Granularity = 4, sparsity: float = 0.75, channels_last: bool = False
) -> tuple[nn.Module, MaskSet]:
    model = network()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    specs = sparse_layers(model, granularity=granularity)
    return model, MaskSet(model, specs, uniform(specs, {"conv": sparsity, "fc": sparsity}))


@pytest.mark.parametrize(("granularity", "units", "unit_size"), [(4, 216, 1), (3, 72, 3), (2, 24, 9), (1, 8, 27)])
def test_units_of_a_convolution(granularity: Granularity, units: int, unit_size: int) -> None:
    spec = sparse_layers(network(), granularity=granularity)[0]
    assert (spec.units, spec.unit_size, spec.weights) == (units, unit_size, 216)


def test_linear_weights_are_elementwise_at_any_granularity() -> None:
    for granularity in (1, 2, 3, 4):
        spec = sparse_layers(network(), granularity=granularity)[-1]
        assert (spec.kind, spec.units, spec.unit_size) == ("fc", 80, 1)


def test_include_and_exclude_patterns() -> None:
    model = network()
    assert [s.name for s in sparse_layers(model)] == ["0.weight", "2.weight", "4.weight"]
    assert [s.name for s in sparse_layers(model, default=["2.weight"])] == ["2.weight"]
    assert [s.name for s in sparse_layers(model, default=["2.weight"], include=["[04].*"])] == ["0.weight", "4.weight"]
    assert [s.name for s in sparse_layers(model, exclude=["4.*"])] == ["0.weight", "2.weight"]


@pytest.mark.parametrize(("key", "kind"), [("include", "sparsity.include"), ("exclude", "sparsity.exclude")])
def test_a_pattern_that_matches_nothing_is_refused(key: str, kind: str) -> None:
    with pytest.raises(UserError, match=rf"{kind}: '4\.weigth' matches no .*did you mean '4\.weight'"):
        sparse_layers(network(), **{key: ["4.weigth"]})


def test_a_shared_weight_is_one_layer() -> None:
    first = nn.Linear(4, 4)
    second = nn.Linear(4, 4)
    second.weight = first.weight
    assert [spec.name for spec in sparse_layers(nn.Sequential(first, second))] == ["0.weight"]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("granularity", [1, 2, 3, 4])
def test_construction(granularity: Granularity, channels_last: bool) -> None:
    model, masks = masked(granularity, channels_last=channels_last)
    masks.check()
    for layer in masks:
        assert layer.active_units == round(layer.spec.units * 0.25)
        assert torch.equal(layer.weight != 0, layer.mask)
    assert masks.budget == masks.active_weights == sum(int(layer.mask.sum()) for layer in masks)


def test_masks_depend_on_the_seed_and_the_layer_alone() -> None:
    model = network()
    specs = sparse_layers(model)
    counts = uniform(specs, {"conv": 0.5, "fc": 0.5})
    torch.manual_seed(1)
    first = [layer.mask for layer in MaskSet(model, specs, counts, seed=7)]
    torch.manual_seed(2)
    again = [layer.mask for layer in MaskSet(network(), specs[::-1], counts, seed=7)][::-1]
    other = [layer.mask for layer in MaskSet(network(), specs, counts, seed=8)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("granularity", [1, 2, 3, 4])
def test_memory_format_does_not_matter(granularity: Granularity) -> None:
    """Same units, same gathered values, same digest of positions, whatever the strides."""
    plain, ours = masked(granularity)
    model, theirs = masked(granularity, channels_last=True)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.active, b.active)
        assert torch.equal(a.gather(a.weight), b.gather(b.weight))
        values = torch.randn(a.active_units, a.spec.unit_size)
        with torch.no_grad():
            a.scatter_(a.weight, values)
            b.scatter_(b.weight, values)
        assert torch.equal(a.weight, b.weight)
        a.zero_(a.weight.data, a.active[:1])
        b.zero_(b.weight.data, b.active[:1])
        assert torch.equal(a.weight, b.weight)
        assert int(a.weight.count_nonzero()) == (a.active_units - 1) * a.spec.unit_size


def test_gather_follows_a_change_of_memory_format() -> None:
    model, masks = masked()
    before = [layer.gather(layer.weight).clone() for layer in masks]
    model.to(memory_format=torch.channels_last)
    assert all(torch.equal(a, layer.gather(layer.weight)) for a, layer in zip(before, masks, strict=True))


def test_move() -> None:
    """Units of all layers are numbered through: here two of the second layer go, its last two free ones come."""
    model, masks = masked(granularity=2)
    first, layer, last = masks.layers
    kept = first.active, last.active
    (block,) = masks.blocks
    gone = torch.zeros(block.numbers().numel(), dtype=torch.bool)
    gone[first.active_units : first.active_units + 2] = True
    expected_dropped = layer.active[:2].clone()
    grown = layer.inactive.view(-1).nonzero().squeeze(1)[-2:]
    moved = block.move(gone, [0, 0, 0], [0, 0, 0], grown + first.spec.units)
    assert [units.tolist() for units in moved.dropped] == [[], expected_dropped.tolist(), []]
    assert [units.tolist() for units in moved.grown] == [[], grown.tolist(), []]
    assert torch.equal(first.active, kept[0])
    assert torch.equal(last.active, kept[1])
    masks.check()
    assert layer.mask.flatten(2).any(2).view(-1)[grown].all()
    assert not layer.weight.detach().view(-1, 9)[torch.cat((expected_dropped, grown))].any()
    assert layer.explored.sum() == layer.explored_units == layer.active_units + 2
    assert masks.explored()[layer.name] == layer.explored_units / layer.spec.units


def test_growth_at_random() -> None:
    """Distinct free units in each layer, some that go in the same event not among them."""
    _, masks = masked()
    (block,) = masks.blocks
    starts = [0, 216, 216 + 288]
    before = [unit + start for layer, start in zip(masks, starts, strict=True) for unit in layer.active.tolist()]
    assert block.numbers().tolist() == before
    gone = torch.zeros(len(before), dtype=torch.bool)
    gone[::3] = True
    moved = block.move(gone, [3, 0, 60], [1, 2, 3])
    masks.budget = masks.active_weights
    masks.check()
    assert [units.numel() for units in moved.grown] == [3, 0, 60]
    after = {unit + start for layer, start in zip(masks, starts, strict=True) for unit in layer.active.tolist()}
    assert after - set(before) == {
        unit + start for units, start in zip(moved.grown, starts, strict=True) for unit in units.tolist()
    }
    assert set(before) - after == {number for number, drop in zip(before, gone.tolist(), strict=True) if drop}
    assert {unit + 504 for unit in moved.grown[2].tolist()} == set(range(504, 584)) - set(before), "all that was free"


def test_layers_on_several_devices_are_refused() -> None:
    model = network()
    specs = sparse_layers(model)
    model[0].to("meta")
    with pytest.raises(ValueError, match="sparse layers lie on cpu, meta, and masks need them on one device"):
        MaskSet(model, specs, {spec.name: 1 for spec in specs})


@pytest.mark.parametrize("granularity", [1, 2, 3, 4])
def test_offsets_of_any_layout(granularity: Granularity) -> None:
    """Against torch's own indexing, for layouts with and without dimensions that lie as one."""
    spec = sparse_layers(nn.Conv2d(6, 8, (3, 5)), granularity=granularity)[0]
    for order in itertools.permutations(range(4)):
        weight = torch.arange(spec.weights).view([spec.shape[d] for d in order]).permute(*map(order.index, range(4)))
        assert weight.shape == spec.shape
        masks = MaskSet(nn.Conv2d(6, 8, (3, 5)), [spec], {spec.name: spec.units // 2})
        assert torch.equal(masks.layers[0].gather(weight).flatten(), weight[masks.layers[0].mask])


@pytest.mark.parametrize("sparsity", [0.75, 0.9])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_outside_the_mask_become_zero_even_if_nan(channels_last: bool, sparsity: float) -> None:
    """Both ways are taken: by flags and, where few weights are active, through the index."""
    model, masks = masked(sparsity=sparsity, channels_last=channels_last)
    assert (sparsity > 1 - FEW) == (masks.layers[0].active_weights <= FEW * masks.layers[0].spec.weights)
    for layer in masks:
        layer.weight.grad = torch.full_like(layer.weight, float("nan"))
        layer.weight.grad[layer.mask] = 2.0
    masks.mask_gradients()
    for layer in masks:
        assert torch.equal(layer.weight.grad, layer.mask * 2.0)


def test_check_finds_a_stray_weight_and_a_wrong_budget() -> None:
    model, masks = masked()
    layer = masks.layers[0]
    with torch.no_grad():
        layer.weight.view(-1)[layer.inactive.view(-1).nonzero()[0]] = 1e-9
    with pytest.raises(AssertionError, match=r"0\.weight: 1 weights outside"):
        masks.check()
    masks.apply_to_weights()
    masks.check()
    masks.set_active(layer, layer.active[1:].clone())
    with pytest.raises(AssertionError):
        masks.check()


@pytest.mark.parametrize("count", [0, 81])
def test_impossible_counts_are_refused(count: int) -> None:
    model = network()
    specs = sparse_layers(model, include=["4.weight"])
    with pytest.raises(ValueError, match=rf"4\.weight: {count} active units asked; it has 80"):
        MaskSet(model, specs, {"4.weight": count})


@pytest.mark.parametrize("granularity", [1, 2, 3, 4])
def test_state_dict_round_trip(granularity: Granularity) -> None:
    model, masks = masked(granularity)
    state = masks.state_dict()
    bits = sum(saved["mask"].numel() for saved in state["layers"].values())
    assert bits == sum(-(-layer.spec.units // 8) for layer in masks)
    other_model = network()
    specs = sparse_layers(other_model, granularity=granularity)
    other = MaskSet(other_model, specs, {spec.name: 1 for spec in specs}, seed=99)
    other.load_state_dict(state)
    assert other.budget == masks.budget
    for a, b in zip(masks, other, strict=True):
        assert torch.equal(a.active, b.active)
        assert torch.equal(a.mask, b.mask)
        assert torch.equal(a.explored, b.explored)


def test_state_of_other_layers_is_refused() -> None:
    state = masked(granularity=2)[1].state_dict()
    with pytest.raises(ValueError, match=r"differ.*0\.weight, 2\.weight$"):
        masked(granularity=4)[1].load_state_dict(state)
