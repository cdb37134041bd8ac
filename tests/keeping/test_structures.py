"""A contract: whoever gives masks to a model, and however, they have the structure that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynsparse import SparseTraining
from dynsparse.errors import UserError
from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.bits import pack_bits
from dynsparse.methods import Method
from dynsparse.methods.gmp import GmpSettings
from tests.test_refusals import refusal

NAME = "0.weight"
ROWS = torch.tensor([True, False]).repeat(4)[:, None].expand(8, 16)
"""Full rows and empty ones: half of the weights, and no structure."""
COLUMNS = torch.tensor([True, True, False, False]).repeat(4).expand(8, 16)
"""The first two of four inputs, for each output: 2:4 and fan_in, yet the outputs of an input are all or none."""
METHODS: dict[str, Any] = {
    "fan_in": {"name": "rigl", "period": 2, "fraction": 0.25},
    "2:4": {"name": "set", "period": 2, "fraction": 0.25},
    "1:2": {"name": "rigl", "period": 2, "fraction": 0.25},
    "2:4 transposable": {"name": "nm", "transposable": True, "period": 2},
}
WRONG: dict[str, tuple[Tensor, str]] = {
    "fan_in": (ROWS, "is not fan_in: outputs have 0 to 16 active units, where each needs as many"),
    "2:4": (ROWS, "is not 2:4: groups of 4 inputs have 0 to 4 active units, where each needs "),
    "1:2": (COLUMNS, "is not 1:2: groups of 2 inputs have 0 to 2 active units, where each needs "),
    "2:4 transposable": (
        COLUMNS,
        "is not 2:4 transposable: groups of 4 outputs have 0 to 4 active units, where each needs ",
    ),
}
RIGHT = {
    "fan_in": COLUMNS,
    "2:4": COLUMNS,
    "1:2": torch.tensor([True, False]).repeat(8).expand(8, 16),
    "2:4 transposable": COLUMNS ^ torch.tensor([True, True, False, False]).repeat(2)[:, None],
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def sparsify(network: nn.Module, structure: str, method: Any = None, **options: Any) -> SparseTraining:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    arguments = {"structure": structure.removesuffix(" transposable"), "total_steps": 8, **options}
    return SparseTraining(network, optimizer, METHODS[structure] if method is None else method, **arguments)


def specs(network: nn.Module, structure: str) -> Any:
    return sparse_layers(network, include=[NAME], structure=structure)


def units(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero().flatten()


def state_with(mask: Tensor, network: nn.Module, structure: str) -> tuple[SparseTraining, dict[str, Any]]:
    """A run, and its state with other masks of as many weights."""
    sparse = sparsify(network, structure, sparsity=0.5, include=[NAME])
    state = sparse.state_dict()
    state["masks"]["layers"][NAME]["mask"] = pack_bits(mask.flatten())
    return sparse, state


def by_masks(mask: Tensor, structure: str) -> None:
    sparsify(model(), structure, masks={NAME: mask})


def by_a_mask_set(mask: Tensor, structure: str) -> None:
    network = model()
    MaskSet(network, specs(network, structure), {NAME: units(mask)})


def by_setting_units(mask: Tensor, structure: str) -> None:
    network = model()
    masks = MaskSet(network, specs(network, structure), {NAME: 64})
    masks.set_active(masks.layers[0], units(mask))


def by_a_state_of_masks(mask: Tensor, structure: str) -> None:
    network = model()
    sparse, state = state_with(mask, network, structure)
    sparse.masks.load_state_dict(state["masks"])


def by_a_state(mask: Tensor, structure: str) -> None:
    sparse, state = state_with(mask, model(), structure)
    sparse.load_state_dict(state, strict=False)


def by_a_state_at_construction(mask: Tensor, structure: str) -> None:
    network = model()
    sparse, state = state_with(mask, network, structure)
    sparse.release()
    sparsify(network, structure, sparsity=0.5, include=[NAME], state=state)


WAYS: list[Callable[[Tensor, str], None]] = [
    by_masks,
    by_a_mask_set,
    by_setting_units,
    by_a_state_of_masks,
    by_a_state,
    by_a_state_at_construction,
]
OF_A_MASK_SET = (by_a_mask_set, by_setting_units, by_a_state_of_masks)
"""Ways to give masks without a method: some take outputs out."""


@pytest.mark.parametrize("structure", list(WRONG))
@pytest.mark.parametrize("way", WAYS)
def test_masks_without_the_structure_are_refused(way: Callable[[Tensor, str], None], structure: str) -> None:
    mask, message = WRONG[structure]
    if structure == "fan_in" and way in OF_A_MASK_SET:
        mask, message = mask.clone(), message.replace("0 to 16", "8 to 16")
        mask[1, :8] = True
    found = refusal(lambda: way(mask, structure))
    assert f"{NAME} {message}" in found


@pytest.mark.parametrize("structure", list(RIGHT))
def test_masks_of_the_structure_are_taken_and_kept(structure: str) -> None:
    network = model()
    sparse = sparsify(network, structure, masks={NAME: RIGHT[structure]})
    assert torch.equal(next(iter(sparse.masks)).mask, RIGHT[structure])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(torch.randn(6, 16)), torch.randint(4, (6,))).backward()
        optimizer.step()
        sparse.check()
    assert sparse.masks.active_weights == int(RIGHT[structure].sum())


@pytest.mark.parametrize("method", ["static", {"name": "rigl", "period": 2}, {"name": "set", "period": 2}])
def test_a_refusal_leaves_the_model_as_it_was(method: Any) -> None:
    network = model()
    before = network[0].weight.detach().clone()
    refusal(lambda: sparsify(network, "2:4", method, masks={NAME: ROWS}))
    assert torch.equal(network[0].weight.detach(), before)
    sparsify(network, "2:4", method, masks={NAME: COLUMNS})


def test_another_number_in_each_group_is_not_n_of_m() -> None:
    mask = torch.tensor([True, False, False, False]).repeat(4).expand(8, 16)
    message = f"masks: {NAME} is not 2:4: groups of 4 inputs have 1 active units, where each needs 2: give masks of"
    assert message in refusal(lambda: sparsify(model(), "2:4", masks={NAME: mask}))
    network = model()
    masks = MaskSet(network, specs(network, "2:4"), {NAME: units(mask)})
    assert message in refusal(lambda: SparseTraining(network, sgd(network), "static", masks=masks, total_steps=3))


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.1)


def test_only_a_method_that_takes_outputs_out_finds_some_out() -> None:
    srigl = {"name": "srigl", "keep_neurons": [], "period": 2}
    sparse = sparsify(model(), "fan_in", srigl, masks={NAME: ROWS})
    sparse.check()
    for method in ("static", {**srigl, "keep_neurons": [NAME]}, {"name": "srigl", "ablation": 0.0, "period": 2}):
        found = refusal(lambda method=method: sparsify(model(), "fan_in", method, masks={NAME: ROWS}))  # type: ignore[misc]
        assert f"masks: {NAME} is not fan_in: outputs have 0 to 16 active units, where each needs as many: " in found
    sparse.release()
    message = refusal(lambda: SparseTraining(sparse.model, sgd(sparse.model), "set", masks=sparse.masks, total_steps=3))
    assert f"masks: {NAME} is not fan_in: outputs have 0 to 16" in message


def test_a_density_on_its_way_to_n_of_m() -> None:
    """A method that starts dense, or with another density, has as many in each group, and not N yet."""
    network = model()
    gmp = GmpSettings(name="gmp", period=2, density={"name": "cubic", "end": 0.75})
    sparse = sparsify(network, "2:4", gmp, sparsity=0.5, include=[NAME], total_steps=16)
    assert sparse.masks.active_weights == 128
    optimizer = sgd(network)
    found = set()
    for _ in range(14):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(torch.randn(6, 16)), torch.randint(4, (6,))).backward()
        optimizer.step()
        sparse.check()
        sparse.load_state_dict(sparse.state_dict())
        found.add(sparse.masks.active_weights)
    assert found == {128, 96, 64}


class Prunes(Method):
    """A method of one's own that changes the density, by budgets."""

    def budgets(self, layers: Any, clock: Any) -> list[int]:
        return [64 for _ in layers]


def test_a_method_of_ones_own_may_begin_with_other_numbers() -> None:
    full = torch.ones(8, 16, dtype=torch.bool)
    sparsify(model(), "2:4", Prunes(), masks={NAME: full}).check()
    assert "have 4 active units, where each needs 2" in refusal(
        lambda: sparsify(model(), "2:4", Method(), masks={NAME: full})
    )


@settings(max_examples=60, deadline=None)
@given(
    structure=st.sampled_from(list(RIGHT)),
    flips=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 15)), max_size=3),
)
def test_masks_are_taken_if_and_only_if_they_have_the_structure(structure: str, flips: list[tuple[int, int]]) -> None:
    mask = RIGHT[structure].clone()
    for place in flips:
        mask[place] ^= True
    size = 16 if structure == "fan_in" else int(structure[2])
    fits = len(set(mask.view(-1, size).sum(1).tolist())) == 1
    if structure.endswith("transposable"):
        fits = fits and len(set(mask.T.reshape(-1, size).sum(1).tolist())) == 1
    if fits:
        by_masks(mask, structure)
    else:
        with pytest.raises(UserError, match=f"{NAME} is not {structure}"):
            by_masks(mask, structure)
