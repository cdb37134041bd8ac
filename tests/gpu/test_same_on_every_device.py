"""All decisions about weights give the CPU's bits on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dynsparse.distributed import digest
from dynsparse.distributed.digest import mask_digest, weight_digest
from dynsparse.masks import MaskSet, block, sparse_layers
from dynsparse.masks.allocation import uniform
from dynsparse.masks.selection import Cut, chosen, cuts_below, cuts_fraction, cuts_smallest
from tests.gpu.devices import CPU, GPU, Reallocating, everywhere, network, unequal
from tests.methods.test_contract import REGISTRY

#: Tied weights have no masks.
MASKED = sorted(set(REGISTRY) - {"tied"})


@everywhere
@pytest.mark.parametrize("name", MASKED)
def test_one_plan_gives_the_same_masks_and_weights(name: str, device: torch.device) -> None:
    """Eight steps, each plan the device's: rank 0 alone plans, and sums of momentum may round otherwise elsewhere."""
    ours, theirs = Reallocating(name, device), Reallocating(name, CPU)
    events = 0
    for step in range(1, Reallocating.STEPS + 1):
        for one in (ours, theirs):
            one.before(step)
        clock = ours.clock(step)
        if not ours.reallocator.is_due(clock):
            continue
        events += 1
        plan = ours.reallocator.plan(clock, ours.seen)
        reports = []
        for one in (ours, theirs):
            one.reallocator._plan = lambda *given, plan=plan: plan  # type: ignore[method-assign,misc]
            reports.append(one.reallocator(clock, one.seen))
            del one.reallocator._plan
            one.masks.check()
        assert reports[0] == reports[1]
        assert unequal(ours.state(), theirs.state()) == []
        assert mask_digest(ours.masks) == mask_digest(theirs.masks)
        assert weight_digest(ours.model, ours.masks) == weight_digest(theirs.model, theirs.masks)
    assert (events > 0) == (name not in ("dense", "static"))


@everywhere
@pytest.mark.parametrize("name", sorted(set(MASKED) - {"sparse_momentum"}))
def test_the_same_plan_is_made(name: str, device: torch.device) -> None:
    """Plans are the same for methods whose decisions need no sum of floats."""
    ours, theirs = Reallocating(name, device), Reallocating(name, CPU)
    for step in range(1, Reallocating.STEPS + 1):
        for one in (ours, theirs):
            one.before(step)
        clock = ours.clock(step)
        if ours.reallocator.is_due(clock):
            assert ours.reallocator.plan(clock, ours.seen) == theirs.reallocator.plan(clock, theirs.seen)
            assert ours.reallocator(clock, ours.seen) == theirs.reallocator(clock, theirs.seen)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["rigl", "dsr", "set", "gmp", "granet"])
def test_large_layers_in_parts_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of at most 100 units: masks that are drawn, plans, moves and digests."""
    monkeypatch.setattr(block, "ON_GPU", 200)
    monkeypatch.setattr(block, "A_PART", 100)
    monkeypatch.setattr(digest, "AT_ONCE", 50)
    assert block.is_large(Reallocating(name, GPU).masks.layers[0])
    test_one_plan_gives_the_same_masks_and_weights(name, GPU)
    test_the_same_plan_is_made(name, GPU)


@everywhere
@pytest.mark.parametrize("sparsity", [0.99, 0.9, 0.5, 0.05])
@pytest.mark.parametrize("granularity", [1, 2, 3, 4])
def test_the_same_masks_are_drawn(sparsity: float, granularity: int, device: torch.device) -> None:
    drawn = []
    for where in (device, CPU):
        model = network(where)
        specs = sparse_layers(model, granularity=granularity)  # type: ignore[arg-type]
        masks = MaskSet(model, specs, uniform(specs, {"conv": sparsity, "fc": sparsity}), seed=5)
        assert {layer.active.device.type for layer in masks} == {where.type}
        drawn.append({layer.name: layer.active.cpu() for layer in masks})
        drawn[-1] |= {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    assert unequal(*drawn) == []


@everywhere
def test_the_same_cuts_are_made(device: torch.device) -> None:
    """Scores with many ties, many zeros, and one value alone; and what a cut then takes."""
    generator = torch.Generator().manual_seed(2)
    scores = [
        torch.rand(1000, generator=generator),
        torch.randint(5, (777,), generator=generator).float(),
        torch.rand(500, generator=generator) * (torch.rand(500, generator=generator) < 0.3),
        torch.full((20,), 0.5),
    ]
    on_device = [layer.to(device) for layer in scores]
    counts = [10, 300, 200, 7]
    makers: list[Callable[[list[Tensor]], list[Cut]]] = [
        lambda layers: cuts_smallest(layers, counts),
        lambda layers: cuts_smallest(layers, [0, 777, 1, 20]),
        lambda layers: cuts_fraction(layers, 0.3),
        lambda layers: cuts_below(layers, 0.5),
    ]
    for make in makers:
        cuts = make(scores)
        assert make(on_device) == cuts
        for layer, there, cut in zip(scores, on_device, cuts, strict=True):
            taken = chosen(layer, cut)
            assert int(taken.sum()) == cut.count
            assert torch.equal(chosen(there, cut).cpu(), taken)


@everywhere
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_digests_are_the_same(layout: torch.memory_format, device: torch.device) -> None:
    ours, theirs = Reallocating("dsr", device), Reallocating("dsr", CPU)
    ours.model.to(memory_format=layout)  # type: ignore[call-overload]
    assert mask_digest(ours.masks) == mask_digest(theirs.masks)
    assert weight_digest(ours.model, ours.masks) == weight_digest(theirs.model, theirs.masks)
    with torch.no_grad():
        layer = next(iter(ours.masks))
        layer.put_(
            layer.weight, layer.active[:1], layer.gather(layer.weight)[:1].nextafter(torch.ones((), device=device))
        )
    assert weight_digest(ours.model, ours.masks) != weight_digest(theirs.model, theirs.masks), "one bit of one weight"
