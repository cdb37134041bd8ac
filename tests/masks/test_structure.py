"""Patterns of masks: groups, draws, moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from dynsparse import SparseTraining
from dynsparse.errors import UserError
from dynsparse.masks import LayerSpec, MaskSet, SparseLayer
from dynsparse.masks.allocation import allocated
from dynsparse.masks.regrouping import Wish, moves
from dynsparse.masks.structure import Structure, drawn, fitted, groups_of, lowest, misfit, require_structure

LINEAR, CONV, SLICES = ((3, 8), 2), ((4, 8, 3, 3), 4), ((4, 8, 3, 3), 2)


def spec(shape: tuple[int, ...], mask_dims: int, structure: str, **options: Any) -> LayerSpec:
    return LayerSpec("w", "conv" if len(shape) == 4 else "fc", shape, mask_dims, structure=structure, **options)


def layer(one: LayerSpec, active: Tensor) -> SparseLayer:
    """A layer with any units active, whatever its structure."""
    made = SparseLayer(one, nn.Parameter(torch.ones(one.shape)))
    made.activate(active)
    return made


def counts(one: LayerSpec, active: Tensor) -> Tensor:
    """Active units of each group, counted without `Groups`."""
    flags = torch.zeros(one.units, dtype=torch.bool)
    flags[active] = True
    mask = flags.view(one.shape[: one.mask_dims])
    if not one.outputs_first:
        mask = mask.transpose(0, 1)
    if one.structure == "fan_in":
        return mask.flatten(1).sum(1)
    m = int(one.structure.split(":")[1])
    parts = [mask[:, start : start + m].sum(1).reshape(-1) for start in range(0, mask.shape[1], m)]
    return torch.cat(parts)


CASES = [
    spec(*LINEAR, "fan_in"),
    spec(*LINEAR, "2:4"),
    spec(*CONV, "fan_in"),
    spec(*CONV, "1:4"),
    spec(*SLICES, "fan_in"),
    spec((8, 4, 3, 3), 4, "fan_in", outputs_first=False),
    spec((8, 4, 3, 3), 4, "2:4", outputs_first=False),
]
IDS = [f"{one.structure} {one.shape} {one.mask_dims} {one.outputs_first}" for one in CASES]


def move(there: SparseLayer, scores: Tensor, costs: Tensor | None, targets: Tensor, dropped: int) -> list[list[Any]]:
    """Flags of the active units that one layer drops, and the numbers of the units that it grows."""
    ((gone, grown),) = moves([Wish(there, scores, costs, units=0, dropped=dropped, seed=0)], [targets])
    return [gone.tolist(), torch.nonzero(grown).squeeze(1).tolist()]


@pytest.mark.parametrize("one", CASES, ids=IDS)
def test_values_go_to_groups_and_back(one: LayerSpec) -> None:
    groups = groups_of(one)
    assert groups is not None
    numbers = torch.arange(one.units)
    by_group = groups.of(numbers)
    assert by_group.shape == (groups.count, groups.size)
    assert torch.equal(groups.units(by_group), numbers)


def test_the_groups_of_a_linear_layer_and_of_a_convolution() -> None:
    groups = groups_of(spec((2, 8), 2, "2:4"))
    assert groups is not None
    assert groups.of(torch.arange(16)).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    groups = groups_of(spec((1, 4, 1, 2), 4, "2:4"))
    assert groups is not None
    assert groups.of(torch.arange(8)).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]], "along the inputs, for each position"


@pytest.mark.parametrize("one", CASES, ids=IDS)
def test_a_draw_gives_each_group_as_many(one: LayerSpec) -> None:
    units = fitted(one, one.units // 2 if one.structure == "fan_in" else one.units * int(one.structure[0]) // 4)
    groups = groups_of(one)
    assert groups is not None
    first, again, other = (drawn(one, units, seed) for seed in (1, 1, 2))
    assert counts(one, first).tolist() == [units // groups.count] * groups.count
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert bool((first[1:] > first[:-1]).all())


def test_all_units_are_drawn_about_as_often() -> None:
    one = spec((4, 8), 2, "2:4")
    times = torch.zeros(32)
    for seed in range(2000):
        times[drawn(one, 16, seed)] += 1
    assert (times / 2000 - 0.5).abs().max() < 0.05


def test_the_lowest_of_each_group() -> None:
    one = spec((1, 8), 2, "2:4")
    costs = torch.tensor([4.0, 1.0, 3.0, 2.0, 0.0, 0.0, 0.0, 9.0])
    assert lowest(one, costs, 4).tolist() == [1, 3, 4, 5], "ties go to the first"


def test_a_move_worked_by_hand() -> None:
    """The example of `move`: 1 has the lower drop score, 3 the lower growth cost."""
    one = spec((1, 4), 2, "2:4")
    there = layer(one, torch.tensor([0, 1]))
    costs = torch.tensor([torch.inf, torch.inf, 9.0, 7.0])
    scores = torch.tensor([5.0, 3.0])
    assert move(there, scores, costs, torch.tensor([2]), 1) == [[False, True], [3]]
    assert move(there, scores, costs, torch.tensor([1]), 0) == [[False, True], []], "the group is to have one"
    assert move(there, scores, costs, torch.tensor([3]), 0) == [[False, False], [3]], "the group is to have three"


def test_layers_move_together_as_each_by_itself() -> None:
    """Sizes, structures and types of scores differ: the cuts of one layer do not reach another."""
    random = torch.Generator().manual_seed(0)
    wishes, targets = [], []
    for number, one in enumerate(CASES):
        groups = groups_of(one)
        assert groups is not None
        units = groups.count * (groups.size // 2)
        there = layer(one, drawn(one, units, number))
        scores = torch.rand(units, generator=random, dtype=torch.float64 if number % 2 else torch.float32)
        costs = torch.rand(one.units, generator=random).index_fill_(0, there.active, torch.inf)
        wishes.append(Wish(there, scores, costs if number % 3 else None, units, 3 * number, number))
        targets.append(torch.full((groups.count,), groups.size // 2))
    together = moves(wishes, targets)
    for wish, target, (gone, grown) in zip(wishes, targets, together, strict=True):
        ((alone, came),) = moves([wish], [target])
        assert torch.equal(gone, alone) and torch.equal(grown, came)
        assert int(gone.sum()) == int(grown.sum()) == wish.dropped


@settings(max_examples=150, deadline=None)
@given(case=st.sampled_from(CASES), by_score=st.booleans(), dropped=st.integers(0, 200), data=st.data())
def test_groups_come_to_their_targets(case: LayerSpec, by_score: bool, dropped: int, data: st.DataObject) -> None:
    """Whatever the groups have now: what falls are the lowest, what grows was free before."""
    groups = groups_of(case)
    assert groups is not None
    seed = data.draw(st.integers(0, 1000))
    now, then = (
        torch.tensor(data.draw(st.lists(st.integers(0, groups.size), min_size=groups.count, max_size=groups.count)))
        for _ in range(2)
    )
    now[0] = max(1, int(now[0]))
    random = torch.Generator().manual_seed(seed)
    order = torch.rand(groups.count, groups.size, generator=random).argsort(1).argsort(1)
    active = torch.nonzero(groups.units(order < now[:, None])).squeeze(1)
    there = layer(case, active)
    scores = torch.randint(0, 5, (active.numel(),), generator=random).float()
    costs = torch.rand(case.units, generator=random).index_fill_(0, active, torch.inf) if by_score else None
    ((gone, flags),) = moves([Wish(there, scores, costs, 0, dropped, seed)], [then])
    grown = torch.nonzero(flags).squeeze(1)
    kept = active[~gone]
    after = torch.cat((kept, grown))
    assert torch.equal(counts_of(groups.of, case, after), then)
    assert not set(grown.tolist()) & set(active.tolist()), "nothing that was active grows"
    least, most = (now - then).clamp(min=0), torch.minimum(now, groups.size - then)
    assert int(gone.sum()) == max(int(least.sum()), min(dropped, int(most.sum())))
    for row in range(groups.count):  # In each group the lowest go.
        of_row = set(groups.of(torch.arange(case.units))[row].tolist())
        fell = [
            score
            for unit, score, one in zip(active.tolist(), scores.tolist(), gone, strict=True)
            if one and unit in of_row
        ]
        left = [
            score
            for unit, score, one in zip(active.tolist(), scores.tolist(), gone, strict=True)
            if not one and unit in of_row
        ]
        assert max(fell, default=0) <= min(left, default=9)


def counts_of(of: Any, one: LayerSpec, units: Tensor) -> Tensor:
    flags = torch.zeros(one.units, dtype=torch.int64)
    flags[units] = 1
    found: Tensor = of(flags).sum(1)
    return found


def test_counts_are_rounded_to_what_groups_can_share() -> None:
    assert fitted(spec((3, 8), 2, "fan_in"), 10) == 9
    assert fitted(spec((3, 8), 2, "fan_in"), 1) == 3, "one each"
    assert fitted(spec((3, 8), 2, "2:4"), 12) == 12
    assert fitted(spec((3, 8), 2, "2:4"), 24) == 24
    found = allocated("uniform", [spec((3, 8), 2, "fan_in")], {"fc": 0.6})
    assert found == {"w": 9}, "10 of 24, and 3 rows"


@pytest.mark.parametrize("pattern", ["2:2", "4:2", "0:4", "2:4 ", "block", "2;4", "100:200"])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(ValidationError, match="it must be free, fan_in, or N:M with N below M, such as 2:4"):
        TypeAdapter(Structure).validate_python(pattern)
    assert TypeAdapter(Structure).validate_python("4:16") == "4:16"


@pytest.mark.parametrize(
    ("one", "sparsity", "message"),
    [
        (
            spec((4, 3, 3, 3), 4, "2:4"),
            0.5,
            r"w of shape \(4, 3, 3, 3\) has 3 inputs, which 4 does not divide: exclude",
        ),
        (spec((4, 8, 3, 3), 2, "2:4"), 0.5, "has units of 9 weights, where N:M is of single ones"),
        (spec((4, 8, 3, 3), 1, "fan_in"), 0.5, "has whole filters as units"),
        (
            spec((3, 8), 2, "2:4"),
            0.9,
            r"sparsity\.fc is 0\.9, and sparsity\.structure 2:4 makes it 0\.5: set it to that",
        ),
    ],
)
def test_layers_and_sparsities_that_do_not_fit(one: LayerSpec, sparsity: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_structure([one], {"conv": sparsity, "fc": sparsity})


def test_layers_of_a_pattern_are_all_equally_sparse() -> None:
    with pytest.raises(UserError, match=r"sparsity\.allocation is erk, and .*2:4 makes all layers equally sparse"):
        require_structure([spec((3, 8), 2, "2:4")], {"fc": 0.5}, "erk")
    require_structure([spec((3, 8), 2, "2:4")], {"fc": 0.5}, "uniform")
    require_structure([spec((3, 8), 2, "fan_in")], {"fc": 0.5}, "erk")
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match="allocation is erk"):
        SparseTraining(model, optimizer, "nm", sparsity=0.5, structure="2:4", allocation="erk", total_steps=9)


def test_masks_of_another_structure_are_refused() -> None:
    model = nn.Module()
    model.w = nn.Parameter(torch.ones(3, 8))
    state = MaskSet(model, [spec(*LINEAR, "2:4")], {"w": 12}).state_dict()
    MaskSet(model, [spec(*LINEAR, "2:4")], {"w": 12}).load_state_dict(state)
    with pytest.raises(UserError, match="sparse layers differ in shape, granularity or presence: w"):
        MaskSet(model, [spec(*LINEAR, "free")], {"w": 12}).load_state_dict(state)


def test_a_misfit_worked_by_hand() -> None:
    """The example of `misfit`: the row of 8 has two active units in its first group, one in its second."""
    one = spec((1, 8), 2, "2:4")
    said = "is not 2:4: groups of 4 inputs have 1 to 2 active units, where each needs as many"
    assert misfit(one, torch.tensor([0, 1, 4])) == said
    assert misfit(one, torch.tensor([0, 4])) is None, "as while the density changes"
    assert misfit(one, torch.tensor([0, 4]), exact=True) == said.replace("1 to 2", "1").replace("as many", "2")
    assert misfit(one, torch.arange(8)) is None
    assert misfit(spec((1, 8), 2, "free"), torch.tensor([0, 1, 4]), exact=True) is None


def test_a_check_finds_masks_that_have_lost_their_structure() -> None:
    model = nn.Module()
    model.w = nn.Parameter(torch.ones(3, 8))
    masks = MaskSet(model, [spec(*LINEAR, "2:4")], {"w": 12})
    masks.check()
    masks.layers[0].activate(torch.arange(12))
    masks.apply_to_weights()
    with pytest.raises(AssertionError, match="w is not 2:4: groups of 4 inputs have 0 to 4 active units"):
        masks.check()
