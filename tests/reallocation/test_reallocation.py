"""Properties of every reallocation, whatever the method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynsparse.distributed import digest
from dynsparse.errors import DesyncError
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.block import Block
from dynsparse.methods import Clock
from dynsparse.methods.dsr import DsrSettings
from dynsparse.methods.rigl import RiglSettings
from dynsparse.reallocation import Reallocator
from dynsparse.runtime import Worker
from tests.ranks import run_distributed


def build(
    model: nn.Module, granularity: Any, active: list[int], target: int, seed: int = 1, **options: Any
) -> Reallocator:
    specs = sparse_layers(model, granularity=granularity)
    masks = MaskSet(model, specs, {spec.name: count for spec, count in zip(specs, active, strict=True)}, seed=seed)
    method = DsrSettings(name="dsr", initial_threshold=0.01, target_moves=target).build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Reallocator(model, masks, method, optimizer, seed=seed, **options)


def shake(reallocator: Reallocator, event: int) -> None:
    """New values for the active weights, as training would give."""
    generator = torch.Generator().manual_seed(event)
    with torch.no_grad():
        for layer in reallocator.masks:
            layer.scatter_(layer.weight, torch.randn(layer.active_units, layer.spec.unit_size, generator=generator))


@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 6), st.integers(20, 400), st.integers(0, 1000))
def test_units_of_different_size_do_not_drift(first: int, second: int, third: int, target: int, seed: int) -> None:
    """Filters of 27, 54 and 45 weights trade over 30 events; no single weights are there to absorb a remainder.

    The number of active weights never exceeds the budget, and falls short by
    less than a unit of any layer that had room left: whatever an event could
    not place, a later one does.
    """
    model = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(6, 12, 3), nn.Conv2d(5, 6, 3)])
    reallocator = build(model, 1, [first, second, third], target, seed)
    masks = reallocator.masks
    for event in range(1, 31):
        shake(reallocator, event)
        room = {layer.name: layer.spec.weights - layer.active_weights for layer in masks}
        report = reallocator(Clock(event, 0))
        masks.check()
        shortfall = masks.budget - masks.active_weights
        assert 0 <= shortfall < 54
        for layer in masks:
            if report.grown[layer.name] < room[layer.name]:
                assert shortfall < layer.spec.unit_size, layer.name


def test_a_remainder_is_carried_to_the_next_event() -> None:
    """Worked by hand: units of 27 (A) and 54 (B), budget 27 * 4 + 54 * 2 = 216.

    Event 1 drops two units of A (54 weights) and all but one share goes to B, which keeps more:
    54 weights over shares 54 and 108 are 18 and 36: floors 0 and 0, remainders .67 of a unit each; the
    first takes one (27), 27 weights are left, which no unit of B fits and one of A does: A grows 2, exact.
    Event 2 drops one unit of B (54) and none of A: over shares 108 and 54 that is 36 and 18: A grows 1 (27),
    then 27 are left: the next largest remainder, B's, does not fit; A takes one more. Exact again.
    """
    model = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(6, 8, 3)])
    reallocator = build(model, 1, [4, 2], target=60)
    a, b = reallocator.masks

    def set_magnitudes(layer: Any, values: list[float]) -> None:
        with torch.no_grad():
            column = torch.tensor(values)[:, None].expand(-1, layer.spec.unit_size)
            layer.scatter_(layer.weight, column)

    reallocator.method.load_state_dict({"threshold": 0.5})
    set_magnitudes(a, [0.1, 0.9, 0.2, 0.9])
    set_magnitudes(b, [0.9, 0.9])
    report = reallocator(Clock(1, 0))
    assert (dict(report.dropped), dict(report.grown)) == (
        {"0.weight": 54, "1.weight": 0},
        {"0.weight": 54, "1.weight": 0},
    )

    reallocator.method.load_state_dict({"threshold": 0.5})
    set_magnitudes(a, [0.9] * 4)
    set_magnitudes(b, [0.9, 0.1])
    report = reallocator(Clock(2, 0))
    assert (dict(report.dropped), dict(report.grown)) == (
        {"0.weight": 0, "1.weight": 54},
        {"0.weight": 54, "1.weight": 0},
    )
    assert reallocator.masks.active_weights == reallocator.masks.budget == 216


def test_a_shortfall_is_made_up_later() -> None:
    """Weights that are missing to the budget (a remainder) grow at the next event, though nothing is dropped."""
    model = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(6, 8, 3)])
    reallocator = build(model, 1, [4, 2], target=60)
    a, b = reallocator.masks
    reallocator.masks.set_active(a, a.active[:3])
    reallocator.masks.apply_to_weights()
    with torch.no_grad():
        for layer in (a, b):
            layer.scatter_(layer.weight, torch.ones(layer.active_units, layer.spec.unit_size))
    reallocator(Clock(1, 0))
    assert (a.active_units, b.active_units) == (4, 2)


def grown_positions(seed: int, step: int) -> list[list[int]]:
    """Positions at which two layers of the same shape and weights grow."""
    model = nn.ModuleList([nn.Linear(50, 40, bias=False), nn.Linear(50, 40, bias=False)])
    reallocator = build(model, 4, [100, 100], target=100)
    reallocator.seed = seed
    for layer in reallocator.masks:
        reallocator.masks.set_active(layer, torch.arange(100))
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight.view(-1)[:100] = torch.cat((torch.full((50,), 1e-4), torch.ones(50)))
    reallocator(Clock(step, 0))
    return [[p for p in layer.active.tolist() if p >= 100] for layer in reallocator.masks]


def test_growth_differs_by_seed_step_and_layer_and_by_nothing_else() -> None:
    first = grown_positions(seed=1, step=10)
    assert grown_positions(seed=1, step=10) == first
    everything = [tuple(row) for seed, step in ((1, 10), (1, 20), (2, 10)) for row in grown_positions(seed, step)]
    assert len(set(everything)) == 6
    assert all(len(row) == 50 for row in everything)


def diverging(worker: Worker, on_desync: str) -> Any:
    """Rank 1 grows elsewhere, and fewer: a fault within a reallocation, not before it."""
    if worker.rank == 1:
        move = Block.move

        def move_wrongly(block: Block, gone: Tensor, counts: Sequence[int], seeds: Sequence[int], *_: Any) -> Any:
            return move(block, gone, [max(0, count - 1) for count in counts], [seed + 1 for seed in seeds])

        Block.move = move_wrongly  # type: ignore[assignment,method-assign]
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(20, 10, bias=False), nn.Linear(10, 10, bias=False)])
    reallocator = build(model, 4, [50, 50], target=10, on_desync=on_desync)
    shake(reallocator, 0)
    reallocator.method.load_state_dict({"threshold": 0.2})
    try:
        report = reallocator(Clock(1, 0))
    except DesyncError as error:
        return str(error)
    reallocator.masks.check()
    masks = digest.mask_digest(reallocator.masks), digest.weight_digest(model, reallocator.masks)
    return report.repaired, masks, dict(reallocator.method.scalars())


def test_a_divergence_within_a_reallocation_aborts_by_name() -> None:
    for message in run_distributed(diverging, 2, "abort"):
        assert message.startswith("ranks differ at step 1 in 0.weight, 1.weight;")


def test_a_divergence_within_a_reallocation_is_repaired() -> None:
    first, second = run_distributed(diverging, 2, "repair")
    assert first == second
    assert first[0] == ("0.weight", "1.weight")


@pytest.mark.parametrize("sparsity_units", [1, 2000])
def test_the_extremes(sparsity_units: int) -> None:
    """One weight a layer, and all of them: nothing moves, nothing breaks."""
    model = nn.ModuleList([nn.Linear(50, 40, bias=False), nn.Linear(50, 40, bias=False)])
    reallocator = build(model, 4, [sparsity_units] * 2, target=5)
    for event in range(1, 20):
        shake(reallocator, event)
        report = reallocator(Clock(event, 0))
        assert sum(report.dropped.values()) == sum(report.grown.values()) == 0
        reallocator.masks.check()
    assert reallocator.method.scalars() == {"threshold": 0.01}


def repaired_before_growing(worker: Worker) -> Any:
    """Rank 1 has another mask when growth is scored by gradient."""
    torch.manual_seed(0)
    model = nn.Linear(30, 20, bias=False)
    masks = MaskSet(model, sparse_layers(model), {"weight": 60}, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = RiglSettings(name="rigl", period=1).build()  # type: ignore[arg-type]
    reallocator = Reallocator(model, masks, method, optimizer, seed=1, on_desync="repair")
    layer = masks.layers[0]
    if worker.rank == 1:
        masks.set_active(layer, (layer.active + 1) % 600 if int(layer.active[-1]) < 599 else layer.active - 1)
        masks.apply_to_weights()
    layer.weight.grad = torch.randn(20, 30, generator=torch.Generator().manual_seed(7))
    seen = reallocator.before_step(Clock(1, 0, 1, 9))
    report = reallocator(Clock(1, 0, 1, 9), seen)
    masks.check()
    return report.repaired, digest.mask_digest(masks), digest.weight_digest(model, masks)


def test_what_is_free_is_asked_after_a_repair() -> None:
    """One repair, before the plan: what grows by score is then the same on every rank."""
    first, second = run_distributed(repaired_before_growing, 2)
    assert first == second
    assert first[0] == ("weight (mask)", "weight")
