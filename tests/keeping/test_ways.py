"""Each way of giving masks uses some of the arguments beside it, and refuses the others."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from dynsparse import SparseTraining
from dynsparse.keeping.ways import UNSAID, WAYS, way_of
from dynsparse.masks import MaskSet, sparse_layers
from tests.test_refusals import refusal

NAME = "1.weight"
SAID: dict[str, Any] = {
    "sparsity": 0.5,
    "allocation": "erk",
    "granularity": 2,
    "structure": "2:4",
    "include": [NAME],
    "exclude": ["3.*"],
    "split": {NAME: 2},
    "batches": [(torch.ones(2, 4, 4, 4), torch.tensor([0, 1]))],
    "loss": nn.functional.cross_entropy,
}
"""Something that each argument may say."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Identity(), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 8))


def masks_of(model: nn.Module) -> MaskSet:
    return MaskSet(model, sparse_layers(model, include=[NAME]), {NAME: 144})


def given(way: str, model: nn.Module) -> dict[str, Any]:
    """The masks, with what else that way needs."""
    drawn = {"sparsity": 0.5}
    scored = {**drawn, "batches": SAID["batches"]}
    return {
        "drawn": {**drawn, "masks": "random"},
        "by score": {**scored, "masks": {"name": "snip", "scope": "layer"}, "loss": SAID["loss"]},
        "by synflow": {**scored, "masks": {"name": "synflow", "scope": "layer"}},
        "own": {"masks": {NAME: torch.arange(4)[None, :, None, None].expand(8, 4, 3, 3) < 2}},
        "MaskSet": {"masks": masks_of(model)},
    }[way]


@pytest.mark.parametrize("argument", list(UNSAID))
@pytest.mark.parametrize("way", list(WAYS))
def test_an_argument_is_used_or_refused(way: str, argument: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"total_steps": 9, **given(way, model)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = {**options, argument: SAID[argument]}
    if argument in WAYS[way].uses:
        SparseTraining(model, optimizer, "static", **wanted).check()
        return
    message = refusal(lambda: SparseTraining(model, optimizer, "static", **wanted))
    assert message == f"{argument}= has no effect {WAYS[way].words}: leave it out"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    SparseTraining(model, optimizer, "static", **options).check()


def test_all_that_have_no_effect_are_named() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"structure": "2:4", "granularity": 2, "exclude": ["3.*"], "masks": masks_of(model), "total_steps": 9}
    assert refusal(lambda: SparseTraining(model, optimizer, "static", **options)).startswith(
        "granularity=, structure= and exclude= have no effect with a MaskSet as masks=, which has its layers, units"
    )


def test_the_table_has_the_defaults_of_the_front_door() -> None:
    parameters = inspect.signature(SparseTraining).parameters
    for name, unsaid in UNSAID.items():
        default = parameters[name].default
        assert (default if default is None or isinstance(default, (int, str)) else type(unsaid)(default)) == unsaid  # type: ignore[call-arg]
    others = {"total_steps", "steps_per_epoch", "masks", "state", "input_shape", "steps", "seed", "process_group"}
    others |= {"on_desync", "on_reallocation", "mask_in_backward"}
    keywords = {name for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}
    assert keywords == set(UNSAID) | others, "a new argument says something of the first masks, or not"


def test_masks_of_ones_own_are_a_way_though_they_are_empty() -> None:
    assert way_of({}, None) is WAYS["own"]
    assert way_of(None, None) is WAYS["drawn"]
