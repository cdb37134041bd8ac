"""Layers in which nothing moves in an event: frozen ones, and those that no gradient has reached in that step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dynsparse import ReallocationReport, SparseTraining

NAMES = ["0.weight", "2.weight", "4.weight"]
MIDDLE = "2.weight"
STEPS = 40


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 160), nn.ReLU(), nn.Linear(160, 160), nn.ReLU(), nn.Linear(160, 160))


def trained(method: dict[str, Any], without: range = range(0), *, frozen: bool = False) -> list[ReallocationReport]:
    """Train for STEPS steps and return the reports of the events.

    The middle layer is `frozen`, or gets no gradient in the steps `without`, as where a branch is not taken.
    """
    model, reports = network(), list[ReallocationReport]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    sparse = SparseTraining(model, optimizer, method, sparsity=0.8, total_steps=STEPS, on_reallocation=reports.append)
    if frozen:
        model[2].requires_grad_(False)
    for step in range(1, STEPS + 1):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(32, 64, generator=generator)
        optimizer.zero_grad()
        (model(images) - images.mean(1, keepdim=True)).square().sum(1).mean().backward()
        if step in without:
            model[2].weight.grad = None
        optimizer.step()
        assert sum(layer.active_weights for layer in sparse.masks) == sparse.masks.budget
    return reports


def dropped(report: ReallocationReport) -> int:
    """Weights dropped in the layers that are not in the middle."""
    return sum(report.dropped[name] for name in NAMES if name != MIDDLE)


MOVERS: dict[str, tuple[dict[str, Any], float]] = {
    "dsr": ({"name": "dsr", "period": 2, "initial_threshold": 0.01, "target_moves": 0.1}, 0.2),
    "chase": ({"name": "chase", "period": 2, "fraction": 0.3, "channel_sparsity": 0}, 0.31),
    "granet": ({"name": "granet", "period": 2, "fraction": 0.3, "density": {"name": "cubic", "start": 0.5}}, 0.31),
    "rigl": ({"name": "rigl", "period": 2, "fraction": 0.3, "scope": "global", "until": 1.0}, 0.31),
    "set": ({"name": "set", "period": 2, "fraction": 0.3, "scope": "global"}, 0.31),
}
"""Methods that choose over all layers together, and the most that they may move of the layers that can."""


@pytest.mark.parametrize("name", MOVERS)
def test_layers_that_train_do_not_pay_for_one_that_is_frozen(name: str) -> None:
    """They move as much of themselves as where nothing is frozen, and keep their number of weights."""
    method, most = MOVERS[name]
    reports = [report for report in trained(method, frozen=True) if report.step > STEPS * 3 // 4]
    assert reports
    for report in reports:
        assert report.dropped[MIDDLE] == report.grown[MIDDLE] == 0
        kept = sum(report.active[name] for name in NAMES if name != MIDDLE)
        assert 0 <= dropped(report) <= most * kept
    moved = [dropped(report) for report in trained(method, frozen=True)]
    assert max(moved) > 0


def test_the_threshold_stays_where_the_target_is_met_by_layers_that_move() -> None:
    method, _ = MOVERS["dsr"]
    thresholds = [report.scalars["threshold"] for report in trained(method, frozen=True)]
    assert max(thresholds[6:]) <= 2 * min(thresholds[6:])


FINAL = {"name": "steps", "start": 0.7, "at": [0.25]}


@pytest.mark.parametrize(
    "method",
    [
        {"name": "granet", "period": 2, "density": {"name": "cubic", "start": 0.5, "end": 0.5}},
        {"name": "rigl", "period": 2, "scope": "global", "until": 1.0, "density": FINAL},
        {"name": "chase", "period": 2, "channel_sparsity": 0, "density": FINAL},
    ],
    ids=lambda method: str(method["name"]),
)
def test_a_layer_without_a_gradient_leaves_the_total_as_it_is(method: dict[str, Any]) -> None:
    """The density has its final value, layers have traded, and then the middle one rests for a few events."""
    away = range(30, 35)
    reports = trained(method, away)
    totals = {report.step: sum(report.active.values()) for report in reports}
    assert {total for step, total in totals.items() if step >= 24} == {totals[STEPS - 2]}
    resting = [report for report in reports if report.step in away]
    assert len(resting) == 3 and all(report.dropped[MIDDLE] == 0 for report in resting)
    uniform = 0.2 * 160 * 160
    assert abs(resting[0].active[MIDDLE] - uniform) > 100, "it had traded"


def test_the_total_falls_on_its_way_though_a_layer_rests() -> None:
    """Pruning by one threshold goes on in the others: what the resting layer has too much they take up."""
    method = {"name": "granet", "period": 2, "density": {"name": "cubic", "start": 0.5, "end": 1.0}}
    undisturbed, disturbed = trained(method), trained(method, range(16, 25))
    assert [sum(one.active.values()) for one in undisturbed] == [sum(one.active.values()) for one in disturbed]
