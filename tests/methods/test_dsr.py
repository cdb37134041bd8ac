from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dynsparse.masks import LayerSpec, MaskSet, sparse_layers
from dynsparse.methods import Clock
from dynsparse.methods.clock import Schedule
from dynsparse.methods.dsr import DsrSettings
from dynsparse.reallocation import Reallocator
from dynsparse.schedules import StepTable
from tests.methods.hand import by_hand


def reallocator_for(weights: list[list[float]], threshold: float, target: int) -> Reallocator:
    """Layers of 1 x n whose non-zero weights are the active ones."""
    model = nn.ModuleList(nn.Linear(len(row), 1, bias=False) for row in weights)
    specs = sparse_layers(model)
    masks = MaskSet(model, specs, {spec.name: spec.units for spec in specs})
    for layer, row in zip(masks, weights, strict=True):
        values = torch.tensor(row)
        masks.set_active(layer, values.nonzero().squeeze(1))
        with torch.no_grad():
            layer.weight.copy_(values)
    masks.budget = masks.active_weights
    masks.apply_to_weights()
    method = DsrSettings(name="dsr", initial_threshold=threshold, target_moves=target).build()
    return Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=1.0))


def test_worked_by_hand() -> None:
    """Two layers, threshold 0.5, three moves wanted.

    layer   weights                                     |w| < 0.5        kept R   free
    0       .9 -.8 .7 .1  0  0  0  0                    .1               3        4
    1       .6  .2 -.3 0  0  0  0  0                    .2 and -.3       1        5

    K = 3, and 3 R / sum(R) gives 9/4 = 2.25 and 3/4 = 0.75: floors 2 and 0, the remainder
    goes to layer 1 (.75 > .25). So layer 0 has 3 + 2 = 5 active, layer 1 has 1 + 1 = 2.
    K is within 10 % of the 3 wanted: the threshold stays.
    """
    reallocator = reallocator_for(
        [[0.9, -0.8, 0.7, 0.1, 0, 0, 0, 0], [0.6, 0.2, -0.3, 0, 0, 0, 0, 0]], threshold=0.5, target=3
    )
    report = reallocator(Clock(step=10, epoch=0))
    assert dict(report.dropped) == {"0.weight": 1, "1.weight": 2}
    assert dict(report.grown) == {"0.weight": 2, "1.weight": 1}
    assert dict(report.active) == {"0.weight": 5, "1.weight": 2}
    first, second = reallocator.masks
    assert first.active[:3].tolist() == [0, 1, 2]
    assert all(position >= 4 for position in first.active[3:].tolist()), "grown where it was free before"
    assert second.active[0].item() == 0
    assert second.active[1].item() >= 3
    assert reallocator.method.scalars() == {"threshold": 0.5}


@pytest.mark.parametrize(
    ("target", "expected"),
    [(1, 0.25), (2, 0.5), (3, 1.0)],
    ids=["2 > 1.1 x 1 halves", "2 of 2 stays", "2 < 0.9 x 3 doubles"],
)
def test_threshold_adapts(target: int, expected: float) -> None:
    reallocator = reallocator_for([[0.9, 0.8, 0.7, 0.1, 0.2, 0, 0, 0, 0, 0]], threshold=0.5, target=target)
    reallocator(Clock(step=10, epoch=0))
    assert reallocator.method.scalars() == {"threshold": expected}


@pytest.mark.parametrize(("scaling", "grown"), [(True, [1, 3]), (False, [3, 1])])
def test_shares_go_by_what_is_kept(scaling: bool, grown: list[int]) -> None:
    """A has 5 active and drops 3, keeps 2; B has 5, drops 1, keeps 4. Four are freed.

    By what is kept, 2 : 4, quotas 1.33 and 2.67: floors 1 and 2, the one left over to B: 1 and 3. (By what was
    active, 5 : 5, it would be 2 and 2.) Without scaling each gets back what it lost: 3 and 1.
    """
    a, b = [0.9, 0.8, 0.1, 0.2, 0.3] + [0.0] * 5, [0.9, 0.8, 0.7, 0.6, 0.1] + [0.0] * 5
    reallocator = by_hand(DsrSettings(name="dsr", initial_threshold=0.5, target_moves=4, scaling=scaling), [a, b])
    report = reallocator(Clock(1, 0))
    assert list(report.dropped.values()) == [3, 1]
    assert list(report.grown.values()) == grown


def test_the_threshold_counts_units() -> None:
    """Kernel slices of 9 weights: 2 of 4 active ones are dropped.

    Asked for 2 units the threshold stays; counted in weights, 18 of 2, it would halve.
    """
    model = nn.Conv2d(4, 4, 3, bias=False)
    specs = sparse_layers(model, granularity=2)
    masks = MaskSet(model, specs, {"weight": torch.tensor([0, 1, 2, 3])})
    with torch.no_grad():
        model.weight[0] = torch.tensor([0.1, 0.2, 0.8, 0.9]).view(4, 1, 1).expand(4, 3, 3)
    method = DsrSettings(name="dsr", initial_threshold=0.5, target_moves=2).build()
    report = Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=1.0))(Clock(1, 0))
    assert sum(report.dropped.values()) == 18
    assert method.scalars() == {"threshold": 0.5}


def test_threshold_stays_bounded_where_little_can_move() -> None:
    """9 of 10 positions active: one move at a time at most, however many are asked. The threshold settles."""
    reallocator = reallocator_for([[0.5] * 9 + [0.0]], threshold=1e-3, target=500)
    thresholds = []
    for event in range(1, 40):
        reallocator(Clock(step=event, epoch=0))
        thresholds.append(reallocator.method.scalars()["threshold"])
        with torch.no_grad():
            reallocator.masks.layers[0].weight[reallocator.masks.layers[0].mask] = 0.5
    assert thresholds[-1] == thresholds[-20] < 2


def test_a_layer_keeps_its_largest_weight() -> None:
    reallocator = reallocator_for([[0.1, -0.3, 0.2, 0, 0, 0, 0, 0], [0.9] * 4 + [0] * 4], threshold=0.5, target=2)
    reallocator(Clock(step=1, epoch=0))
    first = reallocator.masks.layers[0]
    assert first.weight.flatten()[1].item() == pytest.approx(-0.3)
    assert first.weight.count_nonzero() == 1


def test_due_every_period_until_the_stop_epoch() -> None:
    table = StepTable(((0, 10), (2, 25)))
    method = DsrSettings(name="dsr", period=table, stop_epoch=3).build()
    schedule = Schedule(total_steps=130, steps_per_epoch=30)
    due = [step for step in range(1, 121) if method.is_due(schedule.clock(step))]
    assert due == [10, 20, 30, 40, 50, 60, 75]


def test_state_survives() -> None:
    method = DsrSettings(name="dsr").build()
    method.load_state_dict({"threshold": 0.125})
    assert method.scalars() == {"threshold": 0.125}
    assert method.state_dict() == {"threshold": 0.125}


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.15, 0.25), (0.29, 0.5), (0.45, 1.0), (1e-9, 0.25)],
    ids=["2 > 1.1 x 1 halves", "2 of 2 stays", "2 < 0.9 x 3 doubles", "at least one unit"],
)
def test_a_fraction_of_the_active_units(fraction: float, expected: float) -> None:
    """Seven active units, of which the threshold drops two: 0.15, 0.29 and 0.45 of seven are 1, 2 and 3."""
    settings = DsrSettings(name="dsr", initial_threshold=0.5, target_moves=fraction)
    reallocator = by_hand(settings, [[0.9, -0.8, 0.7, 0.1, 0, 0, 0, 0], [0.6, 0.2, -0.6, 0, 0, 0, 0, 0]])
    report = reallocator(Clock(step=10, epoch=0))
    assert sum(report.dropped.values()) == 2
    assert reallocator.method.scalars() == {"threshold": expected}


@pytest.mark.parametrize("value", [0, -3, 1.0, 1.5, 0.0, True, "many", 2**31])
def test_neither_a_count_nor_a_fraction(value: object) -> None:
    with pytest.raises(ValidationError, match=rf"is {value}; it must be a count of units from 1 to 2,147,483,647"):
        DsrSettings.model_validate({"name": "dsr", "target_moves": value})


def test_the_default_serves_a_network_of_any_size() -> None:
    assert DsrSettings(name="dsr").target_moves == 0.12
    DsrSettings(name="dsr").build().check([LayerSpec("tiny", "fc", (2, 2), 2)], {"tiny": 2})
