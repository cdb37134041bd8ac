"""N:M worked by hand, against a dense program of SR-STE, and under the contract."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dynsparse import SparseTraining
from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, MaskSet, sparse_layers
from dynsparse.masks.structure import groups_of
from dynsparse.methods import Clock
from dynsparse.methods.base import require_method
from dynsparse.methods.nm import NmSettings
from dynsparse.reallocation import Reallocator
from dynsparse.runtime import Worker
from tests.masks.test_transposable import all_patterns
from tests.methods.dense_twin import OPTIMIZERS, DenseTwin, loss_of
from tests.methods.hand import set_gradient, values
from tests.methods.test_contract import STEPS, Run, assert_same, assert_zero_outside
from tests.ranks import run_distributed

WEIGHTS = [0.5, 0.1, 0.4, 0.3, -0.2, 0.6, 0.7, 0.1]


def clock(step: int, epoch: int = 0) -> Clock:
    return Clock(step, epoch, steps_per_epoch=100, epochs=2)


def two_groups(active: list[int], **options: Any) -> Reallocator:
    """A linear layer of 1 x 8 under 2:4, with SGD at a rate of 1."""
    model = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([WEIGHTS]))
    masks = MaskSet(model, sparse_layers(model, structure="2:4"), {"weight": torch.tensor(active)}, apply=False)
    method = NmSettings(name="nm", period=1, **options).build()
    method.prepare(masks)
    masks.apply_to_weights()
    return Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=1.0))


def step(reallocator: Reallocator, at: Clock, gradient: list[float]) -> None:
    set_gradient(reallocator.masks.layers[0], gradient)
    seen = reallocator.before_step(at)
    reallocator.optimizers[0].step()
    reallocator.after_step(at, seen)


def reserve_of(reallocator: Reallocator) -> list[float]:
    assert reallocator.method.reserve is not None
    return [round(value, 6) for value in reallocator.method.reserve.layers["weight"].values.view(-1).tolist()]


def test_the_largest_of_each_group_are_active_after_a_straight_through_step() -> None:
    """Weights of brackets are inactive. The pull is 1/2, the rate 1.

    weights      .5   [.1]    .4   [.3]      -.2   [.6]   [.7]    .1
    gradient      0   -.4     .3    .05        0     0     0      0
    + pull            .05           .15            .3    .35
    after        .5   [.45]   .1   [.1]      -.2   [.3]   [.35]   .1
    largest two  .5    .45                         .3     .35
    """
    reallocator = two_groups([0, 2, 4, 7], pull=0.5)
    step(reallocator, clock(1), [0, -0.4, 0.3, 0.05, 0, 0, 0, 0])
    assert reallocator.masks.layers[0].active.tolist() == [0, 1, 5, 6]
    assert values(reallocator.masks.layers[0]) == [0.5, 0.45, 0, 0, 0, 0.3, 0.35, 0]
    assert reserve_of(reallocator) == [0, 0, 0.1, 0.1, -0.2, 0, 0, 0.1]


def test_of_equal_weights_the_active_ones_stay_where_both_are_0() -> None:
    """A weight that has just come to 0 is as large as one in reserve that is 0: nothing moves."""
    reallocator = two_groups([1, 3, 5, 6], straight_through=False)
    reallocator.method.reserve.layers["weight"].values.zero_()  # type: ignore[union-attr]
    step(reallocator, clock(1), [0, 0.1, 0, 0, 0, 0, 0, 0])
    assert values(reallocator.masks.layers[0])[1] == 0
    assert reallocator.masks.layers[0].active.tolist() == [1, 3, 5, 6]


def test_without_straight_through_inactive_weights_rest() -> None:
    """They keep their values, whatever the gradient, and no whole gradient is asked for."""
    reallocator = two_groups([0, 2, 5, 6], straight_through=False)
    assert not reallocator.wants_whole_gradients(clock(1))
    step(reallocator, clock(1), [0, -9, 0.15, -9, 0, 0, 0, 0])
    assert values(reallocator.masks.layers[0]) == [0.5, 0, 0, 0.3, 0, 0.6, 0.7, 0], ".4 fell to .25, below .3"
    assert reserve_of(reallocator) == [0, 0.1, 0.25, 0, -0.2, 0, 0, 0.1]


def test_after_stop_epoch_nothing_trains_in_reserve() -> None:
    reallocator = two_groups([0, 2, 5, 6], stop_epoch=1)
    assert reallocator.wants_whole_gradients(clock(100, 0))
    assert not reallocator.wants_whole_gradients(clock(101, 1))
    before = reserve_of(reallocator)
    step(reallocator, clock(101, 1), [0.0, -9, 0, -9, 0, 0, 0, 0])
    assert reserve_of(reallocator) == before
    assert reallocator.masks.layers[0].active.tolist() == [0, 2, 5, 6]


def test_moves_by_gradient_stay_in_their_groups() -> None:
    """A quarter of four weights is one: the smallest, -.2. Its group grows the larger gradient, 8, not the 9 of others.

    weights      .5   .     .4    .      -.2    .     .7    .
    gradient      0   9      0    9       0    -8      0    7
    """
    reallocator = two_groups([0, 2, 4, 6], criterion="gradient", fraction=0.25, until=1.0)
    assert reallocator.method.reserve is None
    set_gradient(reallocator.masks.layers[0], [0.0, 9, 0, 9, 0, -8, 0, 7])
    reallocator.after_step(clock(1), reallocator.before_step(clock(1)))
    assert reallocator.masks.layers[0].active.tolist() == [0, 2, 5, 6]


def two_of_four(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of the two largest of each four, and of all."""
    order = weight.abs().view(-1, 4).argsort(dim=1, descending=True)
    mask = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :2], True).view_as(weight)
    return mask, torch.ones_like(mask)


@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_is_the_dense_program_of_sr_ste(optimizer: str, period: int) -> None:
    """Thirty steps in a loop of one's own: active weights and those in reserve are the dense program's."""
    torch.manual_seed(1)
    model = nn.Linear(8, 4, bias=False).double()
    first = model.weight.detach().clone()
    options = {"name": "nm", "period": period, "pull": 0.01}
    ours = OPTIMIZERS[optimizer](list(model.parameters()))
    sparse = SparseTraining(model, ours, options, sparsity=0.5, structure="2:4", total_steps=30)
    (layer,) = sparse.masks
    twin = DenseTwin(first, layer.mask, OPTIMIZERS[optimizer], two_of_four, pull=0.01)
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


def one_block(active: list[int], **options: Any) -> Reallocator:
    """Two blocks of 1:2, a linear layer of 2 x 4, with SGD at a rate of 1."""
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, 0.4, 0.1, 0.9], [0.3, 0.1, 0.2, 0.8]]))
    settings = NmSettings(name="nm", period=1, transposable=True, **options)
    specs = sparse_layers(model, structure=settings.pattern("1:2"))
    masks = MaskSet(model, specs, {"weight": torch.tensor(active)}, apply=False)
    method = settings.build()
    method.prepare(masks)
    masks.apply_to_weights()
    return Reallocator(model, masks, method, torch.optim.SGD(model.parameters(), lr=1.0))


@pytest.mark.parametrize("active", [[0, 2, 5, 7], [1, 2, 4, 7], [0, 3, 5, 6], [1, 3, 4, 6]], ids=str)
def test_transposable_blocks_have_one_a_row_and_a_column(active: list[int]) -> None:
    """Each block of 2 x 2 keeps the diagonal with the larger sum, whichever is active: also where all of it moves.

    weights   .5 .4 | .1 .9     .5 + .1 < .4 + .3
              .3 .1 | .2 .8     .1 + .8 < .9 + .2; each row by itself would keep .9 and .8
    """
    reallocator = one_block(active, pull=0.0)
    step(reallocator, clock(1), [0.0] * 8)
    assert reallocator.masks.layers[0].active.tolist() == [1, 3, 4, 6]
    assert values(reallocator.masks.layers[0]) == [0, 0.4, 0, 0.9, 0.3, 0, 0.2, 0]
    assert [round(value, 2) for value in reserve_of(reallocator)] == [0.5, 0, 0.1, 0, 0, 0.1, 0, 0.8]


def test_a_transposable_block_of_equal_sums_stays() -> None:
    reallocator = one_block([0, 2, 5, 7], straight_through=False)
    reallocator.method.reserve.layers["weight"].values.zero_()  # type: ignore[union-attr]
    with torch.no_grad():
        reallocator.masks.layers[0].weight.zero_()
    step(reallocator, clock(1), [0.0] * 8)
    assert reallocator.masks.layers[0].active.tolist() == [0, 2, 5, 7]


def two_of_four_both_ways(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of the best pattern of each 4 x 4, by brute force, and of all."""
    tiles = weight.abs().unfold(0, 4, 4).unfold(1, 4, 4)
    best = all_patterns(2, 4)[(tiles.reshape(-1, 16) @ all_patterns(2, 4).T).argmax(1)] > 0
    mask = best.view(*tiles.shape).transpose(1, 2).reshape(weight.shape)
    return mask, torch.ones_like(mask)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_is_the_dense_program_of_transposable_sr_ste(optimizer: str) -> None:
    torch.manual_seed(1)
    model = nn.Linear(8, 8, bias=False).double()
    first = model.weight.detach().clone()
    options = {"name": "nm", "period": 2, "pull": 0.01, "transposable": True}
    ours = OPTIMIZERS[optimizer](list(model.parameters()))
    sparse = SparseTraining(model, ours, options, sparsity=0.5, structure="2:4", total_steps=20)
    (layer,) = sparse.masks
    twin = DenseTwin(first, layer.mask, OPTIMIZERS[optimizer], two_of_four_both_ways, pull=0.01)
    moved = 0
    for number in range(1, 21):
        before = layer.mask
        loss_of(model.weight, number).backward()
        ours.step()
        ours.zero_grad()
        twin.step(number, chooses=number % 2 == 0)
        moved += int((layer.mask & ~before).sum())
        assert torch.equal(layer.mask, twin.mask), number
        assert sparse.method.reserve is not None
        whole = model.weight.detach() + sparse.method.reserve.layers["weight"].values
        torch.testing.assert_close(whole, twin.weight.detach(), rtol=1e-12, atol=1e-12)
    assert moved > 5


@pytest.mark.parametrize("options", [{}, {"straight_through": False}], ids=str)
@pytest.mark.parametrize("structure", ["1:2", "2:3", "2:4", "2:6"])
def test_masks_are_transposable_at_every_step_and_resume_at_each(structure: str, options: dict[str, Any]) -> None:
    """The greedy choice makes those of 2:6."""
    n, m = map(int, structure.split(":"))
    run = transposable(structure, n / m, options)
    assert_transposable(run, n, m)
    saved = []
    for number in range(1, STEPS + 1):
        run.step(number)
        run.masks.check()
        assert_zero_outside(run)
        assert_transposable(run, n, m)
        saved.append(run.save())
    assert run.moved > 0 or "straight_through" in options
    for done, state in list(enumerate(saved, start=1))[:: 1 if structure == "1:2" else 3]:
        resumed = transposable(structure, n / m, options)
        resumed.load(state)
        for number in range(done + 1, STEPS + 1):
            resumed.step(number)
        assert_same(run, resumed)


def assert_transposable(run: Run, n: int, m: int) -> None:
    for layer in run.masks:
        inputs, outputs = (layer.mask.movedim((0, 1), order).flatten(0, -2) for order in ((-2, -1), (-1, -2)))
        assert (inputs.view(-1, m).sum(1) == n).all() and (outputs.reshape(-1, m).sum(1) == n).all()


class WideRun(Run):
    """A run of a network with 12 and 24 channels, whose first convolution has two inputs and stays out."""

    def network(self) -> nn.Module:
        """Build a network for 2 x 6 x 6 images."""
        return nn.Sequential(
            nn.Conv2d(2, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24 * 9, 12),
        )


def transposable(structure: str, density: float, options: dict[str, Any], worker: Worker | None = None) -> Run:
    pattern = NmSettings(name="nm", transposable=True).pattern(structure)
    more = {**options, "transposable": True}
    return WideRun("nm", 4, 1 - density, "adamw", worker, pattern, exclude=["0.weight"], **more)


def test_ranks_agree_on_transposable_masks() -> None:
    ours, theirs = run_distributed(on_a_rank, 2)
    assert ours == theirs


def on_a_rank(worker: Worker) -> list[list[int]]:
    run = transposable("2:4", 0.5, {}, worker)
    for number in range(1, STEPS + 1):
        run.step(number)
    assert run.moved > 0
    return [layer.active.tolist() for layer in run.masks]


@pytest.mark.parametrize("options", [{}, {"straight_through": False}, {"criterion": "gradient", "until": 1.0}])
@pytest.mark.parametrize("structure", ["1:2", "2:3"])
def test_each_group_has_n_of_m_at_every_step_and_resumes_at_each(structure: str, options: dict[str, Any]) -> None:
    n, m = map(int, structure.split(":"))
    run = begun(structure, n / m, options)
    saved = []
    for number in range(1, STEPS + 1):
        run.step(number)
        assert_zero_outside(run)
        for layer in run.masks:
            groups = groups_of(layer.spec)
            assert groups is not None
            assert (groups.of(layer.mask.view(-1)).sum(1) == n).all()
        saved.append(run.save())
    assert run.moved > 0 or options == {"straight_through": False}
    for done, state in enumerate(saved, start=1):
        resumed = begun(structure, n / m, options)
        resumed.load(state)
        for number in range(done + 1, STEPS + 1):
            resumed.step(number)
        assert_same(run, resumed)


def begun(structure: str, density: float, options: dict[str, Any]) -> Run:
    """A run of the contract's network, whose first convolution has two inputs: under 2:3 it stays out."""
    if structure == "1:2":
        return Run("nm", 4, 1 - density, "adamw", structure=structure, **options)
    return Run("nm", 4, 1 - density, "adamw", structure=structure, exclude=["0.weight"], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.2}, "fraction has no effect with criterion magnitude: leave it out"),
        ({"until": 0.2}, "until has no effect with criterion magnitude: leave it out"),
        ({"criterion": "gradient", "pull": 1e-3}, "pull has no effect with criterion gradient: leave it out"),
        (
            {"criterion": "gradient", "straight_through": False},
            "straight_through has no effect with criterion gradient: leave it out",
        ),
        (
            {"criterion": "gradient", "transposable": True},
            "transposable has no effect with criterion gradient: leave it out",
        ),
        (
            {"straight_through": False, "pull": 1e-4},
            "pull has no effect without straight_through, as inactive weights rest: leave it out",
        ),
        (
            {"density": {"name": "cubic", "start": 0.2}},
            "density changes how many weights are active, and N:M keeps it: leave it out",
        ),
        (
            {"new_weights": "initial"},
            "new_weights is initial, and has no effect: the largest of all weights are active, with the values",
        ),
        ({"soft_drop": 1}, "soft_drop is 1, and has no effect"),
        ({"pull": -1.0}, "greater than or equal to 0"),
        ({"pull": float("inf")}, "finite"),
        ({"period": 0}, "0 at epoch 0 is no number of steps; it must be whole and at least 1"),
    ],
)
def test_settings_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NmSettings(name="nm", **options)


def test_a_refusal_says_all_in_one_line() -> None:
    with pytest.raises(ValidationError) as refused:
        NmSettings(name="nm", new_weights="initial")
    assert refused.value.errors()[0]["msg"] == (
        "Value error, new_weights is initial, and has no effect: the largest of all weights are active, with the "
        "values that they have in reserve: leave it out"
    )


def test_needs_its_structure_and_its_sparsity() -> None:
    layer = LayerSpec("w", "fc", (4, 8), 2, structure="fan_in")
    with pytest.raises(UserError) as refused:
        require_method(NmSettings(name="nm").build(), "nm", [layer], {"w": 16})
    assert str(refused.value) == (
        "method nm keeps N of each M weights, and sparsity.structure is fan_in: set it to N:M, such as 2:4"
    )
    model = nn.Linear(8, 4)
    with pytest.raises(UserError, match=r"sparsity.fc is 0.6, and sparsity.structure 2:4 makes it 0.5: set it to that"):
        SparseTraining(model, torch.optim.SGD(model.parameters()), "nm", sparsity=0.6, structure="2:4", total_steps=1)


def test_transposable_needs_masks_of_its_own() -> None:
    model = nn.Linear(8, 4)
    layer = sparse_layers(model, structure="2:4")
    with pytest.raises(UserError) as refused:
        require_method(NmSettings(name="nm", transposable=True).build(), "nm", layer, {"weight": 16})
    assert str(refused.value) == (
        "method.transposable is true, and the masks of weight are 2:4 along inputs alone: give the method by its name "
        "and options, and no MaskSet"
    )
    options = {"name": "nm", "transposable": True}
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(UserError, match=r"sparsity\.structure is free: set it to N:M, such as 2:4"):
        SparseTraining(model, optimizer, options, sparsity=0.5, total_steps=1)
    narrow = nn.Linear(8, 5)
    other = torch.optim.SGD(narrow.parameters())
    with pytest.raises(UserError, match="has 5 outputs, which 4 does not divide"):
        SparseTraining(narrow, other, options, sparsity=0.5, structure="2:4", total_steps=1)
    with pytest.raises(UserError, match="structure: ") as refused:
        SparseTraining(model, optimizer, "nm", sparsity=0.5, structure="2:4 transposable", total_steps=1)
    assert "\n" not in str(refused.value)


def test_a_damaged_state_is_told_by_its_key() -> None:
    reallocator = two_groups([0, 2, 4, 7])
    method, layers = reallocator.method, {"weight": ((1, 8), 4)}
    good = method.state_dict()
    method.check_state(good, layers)
    for key, value, message in [
        ("values", torch.zeros(8), "reserve.weight.values is not of its layer's shape"),
        ("units", torch.tensor([1.0]), "reserve.weight.units is not a list of numbers"),
        ("units", torch.tensor([1, 1]), "reserve.weight.units are not rising numbers of the layer's units"),
        ("units", torch.tensor([1, 8]), "reserve.weight.units are not rising numbers of the layer's units"),
        ("state", [], "reserve.weight.state is not a table"),
    ]:
        bad = copy.deepcopy(good)
        bad["reserve"]["weight"][key] = value
        with pytest.raises(ValueError, match=message):
            method.check_state(bad, layers)
    with pytest.raises(ValueError, match=r"reserve\.weight is of no such layer"):
        method.check_state(good, {})
    with pytest.raises(KeyError, match="reserve"):
        method.check_state({}, layers)


def test_transposable_weights_that_are_nan_end_the_event() -> None:
    model = nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"name": "nm", "period": 1, "transposable": True}
    sparse = SparseTraining(model, optimizer, options, sparsity=0.5, structure="2:4", total_steps=9)
    with torch.no_grad():
        model.weight[sparse.masks.layers[0].mask] = torch.nan
    model(torch.ones(1, 8)).sum().backward()
    with pytest.raises(UserError, match=r"^weight has weights that are NaN at step 1: training has diverged"):
        optimizer.step()
