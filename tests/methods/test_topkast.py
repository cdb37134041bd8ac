"""Top-KAST worked by hand, against a dense program, and under the contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dynsparse import SparseTraining
from dynsparse.errors import DesyncError, UserError
from dynsparse.masks import LayerSpec, MaskSet, sparse_layers
from dynsparse.methods import Aim, Clock
from dynsparse.methods.base import require_method
from dynsparse.methods.topkast import TopkastSettings
from dynsparse.reallocation import OnDesync, Reallocator
from dynsparse.runtime import Worker
from tests import small_mlp
from tests.methods.dense_twin import OPTIMIZERS, DenseTwin, largest, loss_of
from tests.methods.hand import set_gradient, values
from tests.methods.stepping import assert_ranks_agree
from tests.methods.test_contract import STEPS, Run, assert_same, assert_zero_outside
from tests.ranks import run_distributed

WEIGHTS = [0.9, 0.5, -0.4, 0.3, 0.2, -0.1, 0.05, 0.01, 0.6, 0.02]
ACTIVE = [0, 1]


def clock(step: int, epoch: int = 0) -> Clock:
    return Clock(step, epoch, steps_per_epoch=100, epochs=2)


def one_row(**options: Any) -> Reallocator:
    """A linear layer of 1 x 10 with two active weights and two in reserve, under SGD at a rate of 1."""
    model = nn.Linear(10, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([WEIGHTS]))
    masks = MaskSet(model, sparse_layers(model), {"weight": torch.tensor(ACTIVE)}, apply=False)
    settings: dict[str, Any] = {"period": 1, "reserve": 0.2, "exploration_loss": 0.0, **options}
    method = TopkastSettings(name="topkast", **settings).build()
    method.prepare(masks)
    masks.apply_to_weights()
    return Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=1.0))


def step(reallocator: Reallocator, at: Clock, gradient: list[float]) -> None:
    set_gradient(reallocator.masks.layers[0], gradient)
    seen = reallocator.before_step(at)
    reallocator.optimizers[0].step()
    reallocator.after_step(at, seen)


def reserve_of(reallocator: Reallocator) -> tuple[list[float], list[int]]:
    """Values beside the mask, and the units that train."""
    assert reallocator.method.reserve is not None
    part = reallocator.method.reserve.layers["weight"]
    return [round(value, 6) for value in part.values.view(-1).tolist()], part.units.tolist()


def test_the_reserve_learns_and_the_largest_of_all_are_active() -> None:
    """Two weights are active (A), the next two largest train (B without A), the others rest.

    weights     .9    .5   [-.4]  .3   .2  -.1   .05  .01  [.6]   .02
    gradient    0     .3    .3    9    9    9    9    9    .2     9     those of resting weights do not count
    after       .9    .2    -.7   .3   .2  -.1   .05  .01  .4     .02
    A           .9          -.7
    B without A                   .3                       .4
    """
    reallocator = one_row()
    assert reserve_of(reallocator) == ([0, 0, *WEIGHTS[2:]], [2, 8])
    step(reallocator, clock(1), [0, 0.3, 0.3, 9, 9, 9, 9, 9, 0.2, 9])
    assert reallocator.masks.layers[0].active.tolist() == [0, 2]
    assert values(reallocator.masks.layers[0]) == [0.9, 0, -0.7, 0, 0, 0, 0, 0, 0, 0]
    assert reserve_of(reallocator) == ([0, 0.2, 0, 0.3, 0.2, -0.1, 0.05, 0.01, 0.4, 0.02], [3, 8])


def test_the_loss_in_reserve_is_larger_by_one_over_the_density() -> None:
    """The density is 1/5 and the coefficient 1/10: 1/10 (5 - 1) w = .4 w come off -.4 and .6. Decay takes 1/10 of all.

    A       .9 - .09 = .81      .5 - .05 = .45
    B       -.4 + .2 = -.2      .6 - .3 = .3        half of each: 5 times the tenth of A
    """
    reallocator = one_row(exploration_loss=0.1, period=2)
    reallocator.optimizers[0].param_groups[0]["weight_decay"] = 0.1
    step(reallocator, clock(1), [0.0] * 10)
    assert values(reallocator.masks.layers[0])[:2] == [0.81, 0.45]
    found, _ = reserve_of(reallocator)
    assert (found[2], found[8]) == (-0.2, 0.3)
    assert found[3:8] == WEIGHTS[3:8], "what rests does not decay"


def test_after_stop_epoch_the_sets_stay() -> None:
    reallocator = one_row(stop_epoch=1)
    assert reallocator.wants_whole_gradients(clock(100, 0))
    assert not reallocator.wants_whole_gradients(clock(101, 1))
    before = reserve_of(reallocator)
    step(reallocator, clock(101, 1), [0, 0.4, 9, 9, 9, 9, 9, 9, 9, 9])
    assert reserve_of(reallocator) == before
    assert values(reallocator.masks.layers[0])[:2] == [0.9, 0.1]


def test_a_skipped_step_teaches_nothing_and_may_still_move() -> None:
    """A loss scaler skips the step, and the .6 in reserve is larger than the .5 that is active."""
    reallocator = one_row()
    set_gradient(reallocator.masks.layers[0], [9.0] * 10)
    reallocator.look(clock(1), reallocator.masks)
    assert reallocator.after_skipped_step(clock(1)) is not None
    assert values(reallocator.masks.layers[0]) == [0.9, 0, 0, 0, 0, 0, 0, 0, 0.6, 0]
    assert reserve_of(reallocator)[0] == [0, *WEIGHTS[1:8], 0, 0.02]


def test_without_values_the_reserve_is_drawn_and_not_the_first_units() -> None:
    """A network that was masked before has zeros outside: they are as large as each other."""
    model = nn.Linear(1000, 1, bias=False)
    masks = MaskSet(model, sparse_layers(model), {"weight": 10}, seed=1)
    method = TopkastSettings(name="topkast", reserve=0.1).build()
    method.prepare(masks)
    assert method.reserve is not None
    units = method.reserve.layers["weight"].units
    assert units.numel() == 100
    assert 400 < units.float().mean() < 600


@pytest.mark.parametrize("period", [1, 4])
@pytest.mark.parametrize("optimizer", ["plain", "sgd", "adamw"])
def test_is_the_dense_program_of_top_kast(optimizer: str, period: int) -> None:
    """Thirty steps in a loop of one's own: masks, weights and those beside them are the dense program's.

    With momentum only as long as no weight comes into the reserve from outside, where it had no state: so all train.
    """
    reserve = 8 / 32 if optimizer == "plain" else 24 / 32
    torch.manual_seed(1)
    model = nn.Linear(8, 4, bias=False).double()
    first = model.weight.detach().clone()
    options = {"name": "topkast", "period": period, "reserve": reserve, "exploration_loss": 0.01}
    ours = OPTIMIZERS[optimizer](list(model.parameters()))
    sparse = SparseTraining(model, ours, options, sparsity=0.75, total_steps=30)
    (layer,) = sparse.masks
    count = 8 + round(reserve * 32)

    def choose(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return largest(weight, 8), largest(weight, count)

    twin = DenseTwin(first, layer.mask, OPTIMIZERS[optimizer], choose, pull=0.01 * (4 - 1))
    twin.trains = twin.mask | largest(first * ~twin.mask, count - 8)
    moved = 0
    for number in range(1, 31):
        before = layer.mask
        loss_of(model.weight, number).backward()
        ours.step()
        ours.zero_grad()
        twin.step(number, chooses=number % period == 0)
        moved += int((layer.mask & ~before).sum())
        assert torch.equal(layer.mask, twin.mask), number
        assert sparse.method.reserve is not None
        whole = model.weight.detach() + sparse.method.reserve.layers["weight"].values
        torch.testing.assert_close(whole, twin.weight.detach(), rtol=1e-12, atol=1e-12)
    assert moved > 5


@pytest.mark.parametrize("structure", ["free", "fan_in"])
@pytest.mark.parametrize("granularity", [4, 2])
def test_resumes_at_every_step(granularity: int, structure: str) -> None:
    """Weights, masks and the reserve, to the bit. Here the density falls too."""
    options: dict[str, Any] = {"structure": structure, "density": {"name": "cubic", "start": 0.3, "end": 0.5}}
    run = Run("topkast", granularity, 0.8, "adamw", **options)
    saved = []
    for number in range(1, STEPS + 1):
        run.step(number)
        run.masks.check()
        assert_zero_outside(run)
        saved.append(run.save())
    assert run.moved > 0
    for done, state in enumerate(saved, start=1):
        resumed = Run("topkast", granularity, 0.8, "adamw", **options)
        resumed.load(state)
        for number in range(done + 1, STEPS + 1):
            resumed.step(number)
        assert_same(run, resumed)


def altered(worker: Worker, on_desync: OnDesync, part: str) -> tuple[list[list[str]], list[int], float]:
    """Seven steps of equal batches. Rank 1 has another reserve after the second."""
    model, repaired = small_mlp.mlp(), list[list[str]]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparse = SparseTraining(
        model,
        optimizer,
        {"name": "topkast", "period": 3},
        sparsity=0.9,
        total_steps=9,
        on_desync=on_desync,
        on_reallocation=lambda report: repaired.append(list(report.repaired)),
    )
    for seed in range(7):
        small_mlp.step(model, optimizer, seed=seed)
        if seed == 1 and worker.rank == 1:
            reserve = sparse.method.reserve
            assert reserve is not None
            layer = reserve.layers["0.weight"]
            (layer.values if part == "values" else layer.state["momentum_buffer"]).mul_(50)
    values = sum(float(parameter.detach().double().abs().sum()) for parameter in model.parameters())
    return repaired, [layer.active_units for layer in sparse.masks], values


def told(worker: Worker, part: str) -> str:
    with pytest.raises(DesyncError) as caught:
        altered(worker, "abort", part)
    return str(caught.value)


@pytest.mark.parametrize("part", ["values", "state"])
def test_a_reserve_that_differs_between_ranks_is_told_and_repaired(part: str) -> None:
    """It is given rank 0's before it decides on anything: the network is that of ranks that never differed."""
    _, *alone = altered(Worker(), "abort", part)
    first, second = run_distributed(altered, 2, "repair", part)
    assert first == second == ([["0.weight (reserve)"], []], *alone)
    for message in run_distributed(told, 2, part):
        assert message.startswith("ranks differ at step 3 in 0.weight (reserve); masks and weights must be equal")


def test_three_ranks_agree() -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("topkast", {"reserve": 0.3}),
        ("topkast", {"density": {"name": "cubic", "end": 0.5}}),
        ("nm", {}),
        ("nm", {"criterion": "gradient", "until": 1.0}),
    ]
    assert_ranks_agree(cases, workers=3, sparsity=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reserve": 0.0}, "greater than 0"),
        ({"reserve": 1.5}, "less than or equal to 1"),
        ({"exploration_loss": -0.1}, "greater than or equal to 0"),
        ({"exploration_loss": float("nan")}, "finite|greater than or equal to 0"),
        ({"period": 0}, "0 at epoch 0 is no number of steps; it must be whole and at least 1"),
        (
            {"new_weights": "initial"},
            "new_weights is initial, and has no effect: the largest of all weights are active, with the values",
        ),
        ({"soft_growth": 1}, "soft_growth is 1, and has no effect"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TopkastSettings(name="topkast", **options)


def test_a_reserve_larger_than_what_is_inactive() -> None:
    layer = LayerSpec("w", "fc", (4, 8), 2)
    with pytest.raises(UserError) as refused:
        require_method(TopkastSettings(name="topkast", reserve=0.3).build(), "topkast", [layer], {"w": 24})
    assert str(refused.value) == (
        "method.reserve is 0.3, and no layer has more than 0.25 of its weights inactive: lower it to that"
    )
    require_method(TopkastSettings(name="topkast", reserve=0.25).build(), "topkast", [layer], {"w": 24})
    falling = TopkastSettings(name="topkast", reserve=0.3, density={"name": "cubic", "start": 0.0})  # type: ignore[arg-type]
    aim = Aim({"conv": 0.5, "fc": 0.5})
    require_method(falling.knowing(aim).build(), "topkast", [layer], {"w": 32})
