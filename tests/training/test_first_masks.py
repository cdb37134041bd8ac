"""First masks by magnitude, in a run and in the front door: the largest of the weights that were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynsparse import SparseTraining
from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.training.network import build_network
from dynsparse.training.sources import read_sources
from tests.training import runs

CONV: dict[str, Any] = {
    "model": {"name": "small_cnn", "channels": [6, 8]},
    "data": {"name": "synthetic", "shape": [3, 8, 8], "samples": 60, "test_samples": 20, "threads": 1},
}


def starting(folder: Path, **sections: Any) -> tuple[RunConfig, dict[str, Tensor]]:
    """A run from a file of weights, and these weights."""
    base = runs.config(**CONV)
    torch.manual_seed(5)
    model = base.model.build(base.data.image_shape, base.data.classes)
    torch.save(state := model.state_dict(), folder / "net.pt")
    model_section = {**CONV["model"], "weights": str(folder / "net.pt")}
    sparsity = {"conv": 0.7, "fc": 0.5, "initial": "magnitude", **sections.pop("sparsity", {})}
    return runs.config(**{**CONV, "model": model_section, "sparsity": sparsity, **sections}), state


@pytest.mark.parametrize("sparsity", [{}, {"allocation": "erk"}, {"granularity": 2}], ids=str)
def test_the_largest_stay_and_the_counts_are_those_of_random_masks(sparsity: dict[str, Any], tmp_path: Path) -> None:
    config, state = starting(tmp_path, sparsity=sparsity)
    masks = build_network(config, torch.device("cpu"), read_sources(config)).masks
    masks.check()
    drawn = runs.config(**CONV, sparsity={"conv": 0.7, "fc": 0.5, **sparsity})
    counts = {layer.name: layer.active_units for layer in build_network(drawn, torch.device("cpu")).masks}
    for layer in masks:
        size = layer.spec.unit_size
        means = state[layer.name].reshape(-1, size).abs().mean(1)
        order = sorted(range(len(means)), key=lambda unit: (-means[unit], unit))
        assert layer.active.tolist() == sorted(order[: counts[layer.name]])
        assert torch.equal(layer.weight[layer.mask], state[layer.name][layer.mask])


def test_all_workers_begin_and_go_on_with_the_same(tmp_path: Path) -> None:
    """The digests of two workers agree after each event, or the run would end; resumed, nothing is chosen anew."""
    config, _ = starting(tmp_path, runs=str(tmp_path), name="tuned", train={"epochs": 1, "global_batch_size": 20})
    path = runs.write_config(tmp_path, config)
    done = runs.dist_train("--config", path, workers=2)
    assert done.returncode == 0, done.stderr
    assert len({one["mask_digest"] for one in runs.summary(config.folder)["rank_digests"]}) == 1
    (tmp_path / "net.pt").unlink()
    for more in (["--resume", "auto", "train.epochs=2"], ["--evaluate", config.folder]):
        again = runs.dist_train("--config", path, *more)
        assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({}, "sparsity.initial is magnitude, and fresh weights tell nothing: set model.weights to a trained network"),
        (
            {"start": {"weights_from": "a", "masks_from": "b"}},
            "sparsity.initial and start.masks_from both say the first masks: give one",
        ),
        (
            {"method": {"name": "dense"}, "start": {"weights_from": "a"}},
            "sparsity.initial is magnitude, and method dense starts without masks",
        ),
    ],
)
def test_contradictions_are_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        runs.config(**sections, sparsity={"initial": "magnitude"})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def layer() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(10, 8)


def sparsify(model: nn.Module, method: str = "static", **options: Any) -> SparseTraining:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return SparseTraining(model, optimizer, method, sparsity=0.75, total_steps=9, **options)


def test_the_front_door_keeps_the_largest_too() -> None:
    model = layer()
    before = model.weight.detach().clone()
    sparse = sparsify(model, masks="magnitude")
    kept = before.abs().flatten().argsort(descending=True)[:20]
    assert model.weight.detach().flatten().nonzero().squeeze(1).tolist() == sorted(kept.tolist())
    state, again = sparse.state_dict(), layer()
    again.load_state_dict(model.state_dict())
    assert torch.equal(next(iter(sparsify(again, state=state).masks)).active, next(iter(sparse.masks)).active)


def test_the_front_door_takes_a_network_that_is_sparse_already() -> None:
    """Its masks stay as they are at the same sparsity."""
    model = layer()
    first = sparsify(model)
    active = next(iter(first.masks)).active
    first.release()
    with pytest.raises(UserError, match="masks='magnitude' to keep the largest weights, or 'random'"):
        sparsify(model)
    assert torch.equal(next(iter(sparsify(model, masks="magnitude").masks)).active, active)


def test_the_front_door_refuses_it_where_nothing_is_chosen() -> None:
    model = layer()
    with pytest.raises(UserError, match="masks is 'magnitude', and this method starts without masks"):
        sparsify(model, "dense", masks="magnitude")
    with torch.no_grad():
        model.weight[0, 0] = float("inf")
    before = model.weight.detach().clone()
    with pytest.raises(UserError, match="weight holds NaN or inf"):
        sparsify(model, masks="magnitude")
    assert torch.equal(model.weight, before)
