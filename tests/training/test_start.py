"""Starting from another run: its weights, its masks, its initial state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.masks.bits import unpack_bits
from dynsparse.runtime import Worker
from dynsparse.training import building
from dynsparse.training.checkpoint import checkpoint_of, read
from dynsparse.training.network import build_network
from dynsparse.training.resume import checkpoints_of
from dynsparse.training.sources import missing_sources, read_sources, whole_weights
from dynsparse.training.trainer import Trainer
from tests.training import runs

CPU = torch.device("cpu")
CONV: dict[str, Any] = {
    "model": {"name": "small_cnn", "channels": [6, 8]},
    "data": {"name": "synthetic", "shape": [3, 8, 8], "samples": 60, "test_samples": 20, "threads": 1},
}


def trained(folder: Path, name: str, **sections: Any) -> RunConfig:
    """A run with checkpoints, in this process."""
    config = runs.config(name=name, runs=str(folder), **sections)
    runs.trainer(config, checkpoints=checkpoints_of(config)).fit()
    return config


def active_of(saved: Any) -> dict[str, Tensor]:
    return {name: layer["mask"] for name, layer in saved["masks"]["layers"].items()}


@pytest.mark.parametrize("granularity", [4, 2])
def test_copied_masks_are_those_of_the_source_to_the_bit(tmp_path: Path, granularity: int) -> None:
    """The weights are fresh: masks of the trained network, weights of another seed."""
    sparsity = {"conv": 0.7, "fc": 0.5, "granularity": granularity}
    trained(tmp_path, "source", sparsity=sparsity, **CONV)
    source = read(checkpoint_of(str(tmp_path / "source")))
    config = runs.config(
        seed=8,
        sparsity=sparsity,
        method={"name": "static"},
        start={"masks_from": str(tmp_path / "source")},
        **CONV,
    )
    network = build_network(config, CPU, read_sources(config))
    for name, mask in active_of({"masks": network.masks.state_dict()}).items():
        assert torch.equal(mask, active_of(source)[name])
    first = read(tmp_path / "source" / "checkpoints" / "initial.pt")
    assert any(not torch.equal(mask, active_of(source)[name]) for name, mask in active_of(first).items()), "it moved"
    assert network.masks.budget == network.masks.active_weights, "a unit that the source had still to grow is left out"
    network.masks.check()
    again = build_network(config, CPU, read_sources(config))
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(network.masks, again.masks, strict=True))


def test_fresh_weights_are_not_those_that_the_source_began_with(tmp_path: Path) -> None:
    """Though both runs have the same seed: jobs of a list do. With weights_from they are."""
    trained(tmp_path, "source")
    networks = []
    for start in ({}, {"weights_from": f"{tmp_path}/source_initial"}):
        config = runs.config(method={"name": "static"}, start={"masks_from": f"{tmp_path}/source", **start})
        networks.append(build_network(config, CPU, read_sources(config)))
    fresh, original = networks
    for ours, theirs in zip(fresh.masks, original.masks, strict=True):
        assert torch.equal(ours.active, theirs.active)
        assert not torch.isclose(ours.values(), theirs.values()).any()
        assert float(ours.values().std()) == pytest.approx(float(theirs.values().std()), rel=0.5)


def test_a_copied_mask_finds_the_initial_value_of_each_position(tmp_path: Path) -> None:
    """Masks of the trained network, weights that it began with, also where it was not active then."""
    config = trained(tmp_path, "source")
    start = {"masks_from": f"{tmp_path}/source", "weights_from": f"{tmp_path}/source_initial"}
    copy = runs.config(seed=8, method={"name": "static"}, start=start)
    network = build_network(copy, CPU, read_sources(copy))
    torch.manual_seed(config.seed)
    before = dict(config.model.build(config.data.image_shape, config.data.classes).named_parameters())
    first = read(checkpoint_of(start["weights_from"]))
    grown = 0
    for layer in network.masks:
        assert torch.equal(layer.weight[layer.mask], before[layer.name][layer.mask])
        assert not layer.weight[~layer.mask].any()
        at_first = unpack_bits(first["masks"]["layers"][layer.name]["mask"], layer.spec.units)
        grown += layer.active_units - int(at_first[layer.active].sum())
    assert grown > 0, "some active positions were not active at first"


def test_the_initial_checkpoint_alone_holds_whole_weights(tmp_path: Path) -> None:
    trained(tmp_path, "source")
    folder = tmp_path / "source" / "checkpoints"
    assert set(read(folder / "initial.pt")["initial_weights"]) == {"fc1.weight", "fc2.weight", "fc3.weight"}
    assert "initial_weights" not in read(folder / "latest.pt")
    last = read(folder / "latest.pt")
    weights = whole_weights(last)
    assert weights["fc1.weight"].shape == (24, 36)
    assert sum(int(weights[name].count_nonzero()) for name in last["masks"]["layers"]) <= last["masks"]["budget"]


def test_pruning_goes_on_from_the_dense_network(tmp_path: Path) -> None:
    """Weights, BatchNorm statistics and all; a first epoch at learning rate 0 gives the same accuracy."""
    trained(tmp_path, "dense", method={"name": "dense"})
    pruning = {"name": "pruning", "after_epoch": 0, "every_epochs": 1, "iterations": 3, "target_fc": 0.8}
    config = runs.config(
        name="pruned",
        runs=str(tmp_path),
        method=pruning,
        start={"weights_from": f"{tmp_path}/dense"},
        train={"epochs": 4, "lr": {"name": "steps", "table": {0: 0.0, 1: 0.05}}},
    )
    trainer = build_trainer(config)
    saved = read(checkpoint_of(f"{tmp_path}/dense"))
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, whole_weights(saved)[name])
    assert trainer.masks.sparsity == 0
    assert trainer.evaluate().test.top1 == saved["progress"]["test_top1"]
    summary = trainer.fit()
    assert trainer.masks.active_weights == round(0.2 * (24 * 36 + 12 * 24 + 10 * 12))
    assert summary.reallocations == 3
    assert summary.active_weights == trainer.masks.budget


def build_trainer(config: RunConfig) -> Trainer:
    return building.build_trainer(config, Worker(), read_sources(config))


def test_where_a_source_lies(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "named_initial" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file.pt").touch()

    def found(source: str) -> str:
        return str(checkpoint_of(f"{tmp_path}/{source}").relative_to(tmp_path))

    assert found("run") == "run/checkpoints/latest.pt"
    assert found("run/") == "run/checkpoints/latest.pt"
    assert found("run_initial") == "run/checkpoints/initial.pt"
    assert found("named_initial") == "named_initial/checkpoints/latest.pt", "a run of that very name"
    assert found("file.pt") == "file.pt"
    absent = runs.config(method={"name": "static"}, start={"masks_from": f"{tmp_path}/nowhere"})
    assert missing_sources(absent) == [f"start.masks_from: {tmp_path}/nowhere is not there yet"]


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"model": {"name": "mnist_mlp", "hidden": [24, 13]}},
        "is of another network: fc2.weight is 12x24 in units of 1 there, 13x24 in units of 1 here",
    ),
    (
        {"sparsity": {"exclude": ["fc3.*"]}},
        "is of another network: fc3.weight is 10x12 in units of 1 there, absent here",
    ),
    (
        {"sparsity": {"fc": 0.5, "structure": "2:4"}},
        "source: fc1.weight is not 2:4: groups of 4 inputs have 0 to 4 active units, where each needs 2: name a run of",
    ),
    ({"sparsity": {"fc": 0.5, "structure": "fan_in"}}, "source: fc1.weight is not fan_in: outputs have "),
    ({"start": {"masks_from": "{}/nowhere"}}, "nowhere: does not exist"),
    ({"start": {"masks_from": "{}/other.pt"}}, "other.pt holds weights without masks; name the run it is of"),
    ({"start": {"masks_from": "{}/damaged.pt"}}, "damaged.pt: damaged or no checkpoint"),
]


@pytest.mark.parametrize(("sections", "message"), BAD)
def test_a_mask_file_that_does_not_fit(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    trained(tmp_path, "source", train={"epochs": 1})
    (tmp_path / "damaged.pt").write_bytes(b"nothing")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    source = sections.get("start", {}).get("masks_from", "{}/source").format(tmp_path)
    config = runs.config(method={"name": "static"}, **{**sections, "start": {"masks_from": source}})
    with pytest.raises(UserError) as caught:
        build_network(config, CPU, read_sources(config))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_granularity_must_agree(tmp_path: Path) -> None:
    trained(tmp_path, "source", sparsity={"conv": 0.7, "fc": 0.5, "granularity": 4}, train={"epochs": 1}, **CONV)
    config = runs.config(
        sparsity={"granularity": 2}, method={"name": "static"}, start={"masks_from": f"{tmp_path}/source"}, **CONV
    )
    with pytest.raises(UserError, match=r"conv1\.weight is 6x3x3x3 in units of 1 there, 6x3x3x3 in units of 3x3 here"):
        build_network(config, CPU, read_sources(config))


def test_masks_of_a_dense_run_are_refused(tmp_path: Path) -> None:
    trained(tmp_path, "dense", method={"name": "dense"}, train={"epochs": 1})
    config = runs.config(method={"name": "static"}, start={"masks_from": f"{tmp_path}/dense"})
    with pytest.raises(UserError, match=r"start\.masks_from: .*dense is dense, it has no masks to copy; name a sparse"):
        read_sources(config)


def test_pruning_refuses_a_sparse_start(tmp_path: Path) -> None:
    trained(tmp_path, "sparse", train={"epochs": 1})
    pruning = {"name": "pruning", "after_epoch": 0}
    config = runs.config(method=pruning, start={"weights_from": f"{tmp_path}/sparse"})
    with pytest.raises(UserError, match=r"start\.weights_from: .*sparse is sparse in fc1\.weight; pruning starts from"):
        read_sources(config)


def test_from_the_command_line(tmp_path: Path) -> None:
    """Two workers; the source is not looked at when the run goes on."""
    trained(tmp_path, "source")
    config = runs.config(
        runs=str(tmp_path),
        name="copy",
        method={"name": "static"},
        start={"masks_from": f"{tmp_path}/source", "weights_from": f"{tmp_path}/source_initial"},
        train={"epochs": 1},
    )
    path = runs.write_config(tmp_path, config)
    done = runs.dist_train("--config", path, workers=2)
    assert done.returncode == 0, done.stderr
    copied = read(tmp_path / "copy" / "checkpoints" / "latest.pt")
    source = read(tmp_path / "source" / "checkpoints" / "latest.pt")
    assert all(torch.equal(mask, active_of(source)[name]) for name, mask in active_of(copied).items())
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    done = runs.dist_train("--config", path, "--resume", "auto", "train.epochs=2")
    assert done.returncode == 0, done.stderr
    missing = runs.dist_train("--config", path, "name=other")
    assert missing.returncode == 2
    assert [line.split(":")[1] for line in missing.stderr.splitlines()] == [" start.weights_from", " start.masks_from"]
    assert missing.stderr.count("is not there yet; run it first, or name another run or checkpoint") == 2
    assert not (tmp_path / "other").exists()
    dry = runs.dist_train("--config", path, "--dry-run", "name=other")
    assert dry.returncode == 0, dry.stderr
    assert "start.masks_from: " in dry.stdout


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    lr = {"name": "constant", "warmup_steps": 16}
    with pytest.raises(UserError, match=r"train\.lr\.warmup_steps is 16, and the run has 16 steps \(8 an epoch\)"):
        runs.trainer(runs.config(train={"lr": lr}))
    runs.trainer(runs.config(train={"lr": {**lr, "warmup_steps": 15}}))
