"""Scores of a linear network of two layers, worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynsparse import SparseTraining
from dynsparse.first_masks.choosing import chosen_units
from dynsparse.first_masks.deciding import Scoring
from dynsparse.first_masks.gradients import Example
from dynsparse.first_masks.settings import GraspMasks, ScoredMasks, SnipMasks, SynflowMasks
from dynsparse.first_masks.synflow import goals, synflow_units
from dynsparse.masks import sparse_layers

INPUT, TARGET = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0]])


def network() -> nn.Sequential:
    """Return y = B A x with A = [[1, -2], [3, 0.5]] and B = [2, -1]. For x = (1, 2) A x is (-3, 4), and y is -10."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        model[1].weight.copy_(torch.tensor([[2.0, -1.0]]))
    return model


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum() / 2


def scoring(settings: ScoredMasks, model: nn.Module | None = None) -> Scoring:
    model = model or network()
    specs = sparse_layers(model)
    counts = {spec.name: 1 for spec in specs}
    examples = [Example(INPUT, TARGET, 1.0, 0)]
    return Scoring(settings, model, specs, counts, "masks: snip", lambda: examples, half_square, (2,))


def test_snip_is_the_size_of_gradient_times_weight() -> None:
    """dL/dA is y B^T x^T = -10 (2, -1) (1, 2) = [[-20, -40], [10, 20]]. dL/dB is y (A x)^T = (30, -40)."""
    costs = scoring(SnipMasks(name="snip"))._values()
    assert (-costs["0.weight"]).tolist() == [[20.0, 80.0], [30.0, 10.0]]
    assert (-costs["1.weight"]).tolist() == [[60.0, 40.0]]
    # Two weights in all, one in each layer at least: 80 and 60.
    units = scoring(SnipMasks(name="snip")).units()
    assert {name: one.tolist() for name, one in units.items()} == {"0.weight": [1], "1.weight": [0]}


def test_grasp_is_minus_weight_times_hessian_times_gradient() -> None:
    """L is y^2 / 2, so H g = y' (y'.g) + y (d2y) g, with y' the gradient of y and g = y y'.

    y' is (2, 4, -1, -2) by A and (-3, 4) by B; its square 4 + 16 + 1 + 4 + 9 + 16 = 50. y'.g is -10 x 50 = -500.
    d2y couples A and B alone: of A_ij and B_i it is x_j. Times g = -10 y': by A it is x_j g(B_i), g(B) = (30, -40), so
    [[30, 60], [-40, -80]]; by B it is sum_j x_j g(A_ij), g(A) = [[-20, -40], [10, 20]], so (-100, 50). Times y = -10:
    [[-300, -600], [400, 800]] and (1000, -500). H g is [[-1300, -2600], [900, 1800]] and (2500, -2500).
    """
    costs = scoring(GraspMasks(name="grasp", temperature=1.0))._values()
    assert costs["0.weight"].tolist() == [[1300.0, -5200.0], [-2700.0, -900.0]]  # -w (H g)
    assert costs["1.weight"].tolist() == [[-5000.0, -2500.0]]
    # The highest are removed, so the lowest stay: -5200 and -5000.
    units = scoring(GraspMasks(name="grasp", temperature=1.0)).units()
    assert {name: one.tolist() for name, one in units.items()} == {"0.weight": [1], "1.weight": [0]}


def test_grasp_divides_the_outputs_by_the_temperature() -> None:
    """Half of y in place of y: the loss is a quarter, g and H too, and H g a sixteenth."""
    costs = scoring(GraspMasks(name="grasp", temperature=2.0))._values()
    assert costs["0.weight"].tolist() == [[81.25, -325.0], [-168.75, -56.25]]


def test_grasp_removes_what_holds_the_gradient_down() -> None:
    """A weight that shrinks a little changes the squared norm of the gradient by its score, to first order."""
    model = network()
    weight = model[0].weight

    def norm() -> float:
        found = torch.autograd.grad(half_square(model(INPUT), TARGET), list(model.parameters()))
        return float(sum(one.square().sum() for one in found))

    before, costs = norm(), scoring(GraspMasks(name="grasp", temperature=1.0), model)._values()["0.weight"]
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        old = weight[place].item()
        with torch.no_grad():
            weight[place] = old * 0.9999
        change = (norm() - before) / 0.0001  # -w d|g|^2/dw is -2 w (H g).
        assert change == pytest.approx(2 * float(costs[place]), rel=0.01)
        with torch.no_grad():
            weight[place] = old


def synflow(counts: Sequence[int], scope: str = "global", iterations: int = 1) -> list[list[int]]:
    model = network()
    settings = SynflowMasks(name="synflow", scope=scope, iterations=iterations)  # type: ignore[arg-type]
    return [one.tolist() for one in synflow_units(settings, model, sparse_layers(model), counts, (2,), "masks")]


def test_synflow_is_weight_times_flow() -> None:
    """|A| is [[1, 2], [3, 0.5]] and |B| (2, 1); R = 2 (1 + 2) + 1 (3 + 0.5) = 9.5 for an input of ones.

    w dR/dw is |B_i| |A_ij|, [[2, 4], [3, 0.5]], and |B_i| times the sum of row i, (6, 3.5).
    """
    assert synflow([2, 1]) == [[1], [0, 1]]  # 6, 4, 3.5 of both layers together
    assert synflow([2, 1], scope="layer") == [[1, 2], [0]]  # 4 and 3; 6


def test_synflow_scores_again_after_each_round() -> None:
    """Two rounds lead from 6 weights to 2. In each layer: 4 x (1 / 4)^(1/2) = 2, 2 x (1 / 2)^(1/2) = 1.

    Layer by layer the first round keeps 4 and 3 of A, 6 of B. Then B has its first entry alone, through which 4 flows,
    and the 3 in the second row leads nowhere.
    """
    assert synflow([1, 1], scope="layer", iterations=2) == [[1], [0]]
    # Globally the first round has 2 + 1 weights, 6, 4 and 3.5. Then R = 2 x 2: the 3.5 carries nothing.
    assert synflow([1, 1], iterations=2) == [[1], [0]]


def test_rounds_end_with_the_counts() -> None:
    (spec,) = sparse_layers(nn.Linear(10, 10))
    assert list(goals([spec], [1], 2)) == [[10], [1]]
    assert list(goals([spec], [50], 1)) == [[50]]
    rounds = list(goals([spec], [3], 100))
    assert rounds[0] == [97] and rounds[-1] == [3] and len(rounds) == 100  # 100 x 0.03^(1/100) = 96.55
    assert all(later <= earlier for (earlier,), (later,) in pairwise(rounds))


def test_the_example_of_the_docstring() -> None:
    specs = sparse_layers(nn.Sequential(nn.Linear(2, 1), nn.Linear(2, 1)))

    def units(*costs: list[float]) -> list[Any]:
        found = chosen_units(specs, [torch.tensor(one) for one in costs], [1, 1], "global", [2, 2])
        return [one.tolist() for one in found]

    assert units([1, 4], [2, 3]) == [[0], [0]]
    assert units([1, 2], [9, 8]) == [[0], [1]]


def test_the_network_is_as_before_until_it_is_masked() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = SparseTraining(
        model, optimizer, "static", sparsity=0.5, total_steps=3, masks="snip", batches=[(INPUT, TARGET)],
        loss=half_square,
    )  # fmt: skip
    # 3 of 6: 80, 60 and 40.
    assert model[0].weight.tolist() == [[0.0, -2.0], [0.0, 0.0]] and model[1].weight.tolist() == [[2.0, -1.0]]
    assert sparse.masks.budget == 3 and all(one.grad is None for one in model.parameters())
