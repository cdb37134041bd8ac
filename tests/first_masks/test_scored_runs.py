"""First masks by score in runs: training goes on as if nothing had been computed, and ranks agree."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dynsparse.config.schema import RunConfig
from dynsparse.distributed import digest
from dynsparse.errors import UserError
from dynsparse.first_masks.settings import SnipMasks
from dynsparse.runtime import Worker
from dynsparse.training.building import build_trainer
from dynsparse.training.network import build_network, require_layers
from dynsparse.training.sources import read_sources
from tests.ranks import run_distributed
from tests.training import runs

MIXED = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}
SNIP, GRASP, SYNFLOW = ({"name": name} for name in ("snip", "grasp", "synflow"))
CNN: dict[str, Any] = {
    "model": {"name": "small_cnn", "channels": [6, 8]},
    "data": {"name": "synthetic", "shape": [3, 8, 8], "samples": 60, "test_samples": 20, "threads": 1},
}


def static(initial: Any, sparsity: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    conv_and_fc = {"conv": 0.7, "fc": 0.8, "initial": initial, **(sparsity or {})}
    return runs.config(method={"name": "static"}, sparsity=conv_and_fc, **sections)


@pytest.mark.parametrize(
    ("loader", "initial"), [("torch", SNIP), ("dali", GRASP), ("resident", {**SNIP, "batches": 3})]
)
def test_training_begins_with_the_same_batches(loader: str, initial: dict[str, Any]) -> None:
    """They are the same bits, augmented and mixed. All but the sparse weights is as with random masks."""
    data = {"name": "digits", "image_size": 8, "threads": 1, "loader": loader, "trivial_augment": True}
    sections = {"data": data, "train": {"mixing": MIXED, "micro_batches": 2, "start_epoch": 1}}
    ours, theirs = (runs.trainer(static(one, **sections)) for one in (initial, "random"))
    sparse = {layer.spec.parameter for layer in theirs.masks}
    for (name, mine), other in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        assert name in sparse or torch.equal(mine, other), name
    assert all(one.grad is None and one.requires_grad for one in ours.model.parameters()) and ours.model.training
    assert ours.data.train.state_dict() == theirs.data.train.state_dict()
    for one in (ours, theirs):
        one.data.train.seek(1, 0)
    ours_seen, theirs_seen = ([*one.data.train.epoch()] for one in (ours, theirs))
    for mine, others in zip(ours_seen, theirs_seen, strict=True):
        for a, b in zip(mine, others, strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    for one in (ours, theirs):
        one.data.close()


@pytest.mark.parametrize("initial", [SNIP, GRASP, {**SYNFLOW, "iterations": 7}], ids=str)
@pytest.mark.parametrize(
    "sparsity",
    [{"granularity": 2}, {"granularity": 1, "fc": None}, {"structure": "fan_in"}, {"exclude": ["conv1.*"]}],
    ids=str,
)
def test_units_structures_and_excluded_layers(initial: dict[str, Any], sparsity: dict[str, Any]) -> None:
    """Counts are those of random masks: in all, to within a unit; in each layer with its scope."""
    scope = "layer" if "structure" in sparsity else "global"
    drawn = runs.trainer(static("random", sparsity, **CNN)).masks
    for each in {scope, "layer"}:
        masks = runs.trainer(static({**initial, "scope": each}, sparsity, **CNN)).masks
        masks.check()
        largest = max(layer.spec.unit_size for layer in masks)
        assert 0 <= drawn.budget - masks.budget < largest
        if each == "layer":
            assert [one.active_units for one in masks] == [one.active_units for one in drawn]
        if "structure" in sparsity:
            for layer in masks:
                assert len(set(layer.mask.flatten(1).sum(1).tolist())) == 1


def test_one_ranking_takes_the_highest_of_all_layers() -> None:
    """Compare it with a backward pass of the dense network over the first two batches."""
    trainer = runs.trainer(static({**SNIP, "batches": 2}))
    model, masks, whole = copy.deepcopy(trainer.model), trainer.masks, trainer.network.initial_weights
    weights = {name: one for name, one in model.named_parameters() if name in whole}
    for name, one in weights.items():
        one.data.copy_(whole[name])
    for ((images, labels),), _ in zip(trainer.data.train.epoch(), range(2), strict=False):
        (nn.functional.cross_entropy(model(images), labels) / 2).backward()
    scores = {name: (one * one.grad).abs().detach() for name, one in weights.items()}
    assert len(masks) == len(scores) == 3 and min(layer.active_units for layer in masks) > 1
    least = min(float(scores[layer.name][layer.mask].min()) for layer in masks)
    assert least >= max(float(scores[layer.name][~layer.mask].max()) for layer in masks)
    for layer in masks:
        assert torch.equal(layer.weight[layer.mask], whole[layer.name][layer.mask])


def agreed(worker: Worker, initial: dict[str, Any]) -> tuple[int, list[list[int]]]:
    trainer = runs.trainer(static(initial), worker)
    trainer.fit()
    return digest.mask_digest(trainer.masks), [layer.active.tolist() for layer in trainer.masks]


@pytest.mark.parametrize("initial", [SNIP, GRASP, {**SYNFLOW, "iterations": 9}], ids=str)
def test_ranks_agree(initial: dict[str, Any]) -> None:
    """There are 1, 2 and 3; BatchNorm sees other parts on more. SynFlow has the same masks on any number."""
    masks = [agreed(Worker(), initial)[1]]
    for ranks in (2, 3):
        results = run_distributed(agreed, ranks, initial)
        assert len({found for found, _ in results}) == 1
        masks.append(results[0][1])
    assert len({sum(map(len, one)) for one in masks}) == 1
    if initial["name"] == "synflow":
        assert masks[0] == masks[1] == masks[2]


def test_a_resumed_run_has_its_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is scored again: killed and resumed, it is the run that was not."""
    config = static(SNIP, runs=str(tmp_path), name="snip", train={"epochs": 1})
    path = runs.write_config(tmp_path, config)
    for words in (["--config", path], ["--config", path, "--resume", "auto", "train.epochs=2"]):
        done = runs.dist_train(*words)
        assert done.returncode == 0, done.stderr
    whole = runs.dist_train("--config", path, "train.epochs=2", "name=whole")
    assert whole.returncode == 0, whole.stderr
    ours, theirs = runs.summary(config.folder), runs.summary(tmp_path / "whole")
    assert (ours["mask_digest"], ours["weight_digest"]) == (theirs["mask_digest"], theirs["weight_digest"])
    more = ["--config", path, "--resume", "auto", "train.epochs=3"]
    other = runs.dist_train(*more, "sparsity.initial.batches=8")
    assert other.returncode == 2
    assert "sparsity.initial acts at a run's start alone" in other.stderr
    again = runs.dist_train(*more)
    assert again.returncode == 0 and runs.summary(config.folder)["mask_digest"] == ours["mask_digest"], again.stderr


def test_weights_to_start_from_are_scored(tmp_path: Path) -> None:
    """All weights of a layer but one are near 0, and so are their scores: that one stays."""
    base = static(SNIP)
    torch.manual_seed(5)
    state = base.model.build(base.data.image_shape, base.data.classes).state_dict()
    state["fc2.weight"].mul_(1e-12)[3, 4] = 1.0
    torch.save(state, tmp_path / "net.pt")
    settings = static({**SNIP, "scope": "layer"}, model={"name": "mnist_mlp", "hidden": [24, 12], "weights": "x"})
    model = settings.model.model_copy(update={"weights": str(tmp_path / "net.pt")})
    settings = settings.model_copy(update={"model": model})
    trainer = build_trainer(settings, Worker(), read_sources(settings))
    layer = next(one for one in trainer.masks if one.name == "fc2.weight")
    assert 3 * 24 + 4 in layer.active.tolist()


def test_a_config_may_say_the_name_alone() -> None:
    config = static("snip")
    assert config.sparsity.initial == SnipMasks(name="snip")
    assert config.as_dict()["sparsity"]["initial"] == {"name": "snip", "scope": "global", "batches": 1}
    assert runs.config(**config.as_dict()) == config
    assert static("random").as_dict()["sparsity"]["initial"] == "random"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"sparsity": {"allocation": "erk", "initial": "snip"}},
            (
                "sparsity.initial is snip with the scope global, which shares out by one ranking, and "
                "sparsity.allocation is erk: leave that out, or set sparsity.initial='{name: snip, scope: layer}'"
            ),
        ),
        (
            {"sparsity": {"structure": "fan_in", "initial": "grasp"}},
            (
                "sparsity.initial is grasp with the scope global, and sparsity.structure fan_in leaves no layer "
                "another number of weights: set sparsity.initial='{name: grasp, scope: layer}'"
            ),
        ),
        (
            {"sparsity": {"initial": "snip"}, "method": {"name": "rigl", "density": {"name": "cubic", "start": 0.5}}},
            (
                "sparsity.initial is snip with the scope global, and method.density shares out by sparsity.allocation: "
                "set sparsity.initial='{name: snip, scope: layer}', or leave method.density out"
            ),
        ),
        (
            {"sparsity": {"initial": "snip"}, "method": {"name": "gmp"}},
            "sparsity.initial is snip, and the method begins with all weights, so that none are chosen: leave it out",
        ),
        (
            {
                "sparsity": {"initial": "magnitude"},
                "start": {"weights_from": "a"},
                "method": {"name": "rigl", "density": {"name": "cubic", "start": 0}},
            },
            (
                "sparsity.initial is magnitude, and the method begins with all weights, so that none are chosen: leave "
                "it out"
            ),
        ),
        (
            {"sparsity": {"initial": "synflow"}, "method": {"name": "tied"}},
            "sparsity.initial is synflow, and method tied starts without masks: leave it out",
        ),
        (
            {"sparsity": {"initial": "snip"}, "start": {"masks_from": "a"}},
            "sparsity.initial and start.masks_from both say the first masks: give one",
        ),
        ({"sparsity": {"initial": 3}}, "is 3; give a name, one of random, magnitude, snip, grasp, synflow, or a secti"),
        ({"sparsity": {"initial": {"name": "synflow", "batches": 3}}}, "sparsity.initial.batches: unknown key"),
    ],
)
def test_contradictions_are_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        runs.config(**sections)
    assert words in str(caught.value)
    assert len(caught.value.lines) == 1


@pytest.mark.parametrize("initial", [SNIP, GRASP, SYNFLOW, {"name": "magnitude"}], ids=str)
@pytest.mark.parametrize("sparsity", [{"exclude": ["*"]}, {"fc": 0.0}], ids=str)
def test_masks_are_chosen_for_no_layer(tmp_path: Path, initial: dict[str, Any], sparsity: dict[str, Any]) -> None:
    config = static(initial, sparsity, start={"weights_from": str(tmp_path)}, runs=str(tmp_path), name="none")
    words = (
        f"sparsity.initial is {initial['name']}, and mnist_mlp has no layer that is to be sparse: leave it out, or "
        f"make layers sparse (sparsity.conv, fc, include, exclude)"
    )
    with pytest.raises(UserError) as refused:
        require_layers(config)
    assert str(refused.value) == words
    with pytest.raises(UserError) as refused:
        build_network(config, torch.device("cpu"))
    assert str(refused.value) == words


def test_more_batches_than_an_epoch_has_are_refused(tmp_path: Path) -> None:
    words = "sparsity.initial.batches is 9, and the first epoch has 8 steps: set it to that or less"
    config = static({**SNIP, "batches": 9}, runs=str(tmp_path), name="many")
    with pytest.raises(UserError, match=words):
        runs.trainer(config)
    for more in ([], ["--check"]):
        done = runs.dist_train("--config", runs.write_config(tmp_path, config), *more)
        assert done.returncode == 2 and words in done.stderr + done.stdout
    assert not config.folder.exists()
