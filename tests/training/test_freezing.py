"""Frozen parameters: not a bit of them changes, and no layer gets their weights or gives them any."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.network import build_network, require_layers
from dynsparse.training.sources import read_sources
from tests.methods.test_contract import REGISTRY
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_every_method import settings, stopped_and_resumed
from tests.training.test_resume import assert_same, state_after

FIRST = ["fc1.*", "bn1.*"]


def frozen(name: str, **sections: Any) -> RunConfig:
    return settings(name, train={"freeze": FIRST, **sections.pop("train", {})}, **sections)


def of_first(state: dict[str, Any]) -> dict[str, Any]:
    """The parts of a checkpoint that belong to the frozen layer and its norm."""
    parts = {"weights": state["weights"], "masks": state["masks"]["layers"], "buffers": state["ranks"][-1]["buffers"]}
    first = {f"{part}: {key}": value for part, of in parts.items() for key, value in of.items()}
    return {key: value for key, value in first.items() if ": fc1." in key or ": bn1." in key}


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - {"tied"}))
def test_every_method_leaves_a_frozen_layer_alone(name: str) -> None:
    trainer = runs.trainer(frozen(name))
    before = trainer.run.save([trainer.run.of_this_rank()])
    trainer.fit()
    after = trainer.run.save([trainer.run.of_this_rank()])
    assert {"weights: fc1.weight", "weights: bn1.bias", "buffers: bn1.running_var"} <= of_first(before).keys()
    assert_same(of_first(after), of_first(before))
    assert all(after["optimizer"][key] == {} for key in ("fc1.weight", "bn1.weight", "bn1.bias"))
    assert set(after["optimizer"]["fc2.weight"]), "the others have state"
    assert not torch.equal(after["weights"]["bn2.weight"], before["weights"]["bn2.weight"])
    if name not in ("acdc", "gmp", "granet", "pruning", "dense", "srigl"):
        assert after["masks"]["budget"] == before["masks"]["budget"]
    others = [key for key in ("fc2.weight", "fc3.weight") if name != "dense"]
    assert any(not _same_mask(after, before, key) for key in others) == (name not in ("dense", "static"))


def _same_mask(after: dict[str, Any], before: dict[str, Any], name: str) -> bool:
    masks = [state["masks"]["layers"][name]["mask"] for state in (after, before)]
    return torch.equal(*masks)


@pytest.mark.parametrize(
    ("workers", "sections"),
    [
        (2, {"distributed": {"gradients": "active"}, "train": {"micro_batches": 2, "precision": "fp16"}}),
        pytest.param(3, {"train": {"optimizer": {"name": "adamw"}}}, marks=pytest.mark.slow),
    ],
    ids=["active gradients, micro-batches, fp16", "3 ranks, adamw"],
)
def test_stopped_and_resumed_on_several_ranks(workers: int, sections: dict[str, Any]) -> None:
    """BatchNorm's statistics of the frozen norm are fixed on each rank, through evaluations that average the others."""
    found = run_distributed(stopped_and_resumed, workers, frozen("rigl", **sections))
    whole, resumed = found[0]
    assert_same(resumed, whole)
    fresh = runs.trainer(frozen("rigl", **sections))
    assert_same(of_first(whole), of_first(fresh.run.save([fresh.run.of_this_rank()])))
    assert whole["progress"]["reallocations"] > 0


def test_killed_in_mid_epoch_and_resumed(tmp_path: Path) -> None:
    digests = []
    for name, faults in (("whole", ""), ("killed", "kill 0 step 5")):
        config = runs.config(runs=str(tmp_path), name=name, train={"freeze": FIRST}, checkpoint={"every_steps": 2})
        arguments = ["--config", runs.write_config(tmp_path, config), "--resume", "auto"]
        if faults:
            assert runs.dist_train(*arguments, script=FAULTY_RUN, FAULTS=faults).returncode != 0
        done = runs.dist_train(*arguments)
        assert done.returncode == 0, done.stderr
        digests.append({key: runs.summary(config.folder)[key] for key in ("weight_digest", "mask_digest", "steps")})
    assert digests[0] == digests[1]


FAULTY_RUN = runs.ROOT / "tests" / "training" / "faulty_run.py"


def equal_means(worker: Worker, config: RunConfig) -> Any:
    """Statistics of the frozen norm after an evaluation, where the mean of equal numbers may round."""
    trainer = runs.trainer(config, worker)
    trainer.model.bn1.running_mean.copy_(torch.randn(24, generator=torch.Generator().manual_seed(2)) / 3)
    before = trainer.model.bn1.running_mean.clone()
    trainer.evaluate()
    return torch.equal(trainer.model.bn1.running_mean, before)


def test_averages_over_ranks_leave_fixed_statistics_alone() -> None:
    assert run_distributed(equal_means, 3, frozen("static")) == [True, True, True]


def test_a_norm_that_is_frozen_uses_its_statistics() -> None:
    """It does as in evaluation; one whose bias trains is an ordinary one."""
    for patterns, fixed in ((FIRST, True), (["bn1.weight"], False)):
        trainer = runs.trainer(runs.config(train={"freeze": patterns, "epochs": 1}))
        before = trainer.model.bn1.running_mean.clone()
        trainer.fit()
        assert torch.equal(trainer.model.bn1.running_mean, before) is fixed


def test_everything_sparse_may_be_frozen() -> None:
    """The norms train on, and no weight moves."""
    trainer = runs.trainer(runs.config(train={"freeze": ["fc*"]}))
    before = [layer.active for layer in trainer.masks]
    weights = [layer.weight.detach().clone() for layer in trainer.masks]
    summary = trainer.fit()
    assert summary.steps == 16
    assert all(torch.equal(layer.active, active) for layer, active in zip(trainer.masks, before, strict=True))
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(trainer.masks, weights, strict=True))


def test_thawed_when_it_goes_on_and_frozen_when_it_goes_on(tmp_path: Path) -> None:
    """The patterns may change where a run resumes. What freezes then loses its optimizer state."""
    half = runs.trainer(runs.config(train={"freeze": FIRST, "epochs": 1}))
    half.fit()
    saved = half.run.save([half.run.of_this_rank()])
    for patterns, without in (([], []), (["fc2.*"], ["fc2.weight"])):
        trainer = runs.trainer(runs.config(train={"freeze": patterns, "epochs": 2}))
        trainer.load(saved)
        trainer.fit()
        states = trainer.run.save([trainer.run.of_this_rank()])["optimizer"]
        assert [name for name, state in states.items() if not state] == without


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["fc1.*", "bn7.*"], "train.freeze: 'bn7.*' matches no parameter; the nearest of 9 are"),
        (["fc1.weigth"], "train.freeze: 'fc1.weigth' matches no parameter; did you mean 'fc1.weight'?"),
        (["*"], "train.freeze: all 9 parameters are frozen, nothing would train: leave some out"),
    ],
)
def test_patterns_that_cannot_be_meant(patterns: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        require_layers(runs.config(train={"freeze": patterns}))
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_tied_weights_cannot_be_named() -> None:
    with pytest.raises(UserError, match="freeze does not go with method tied"):
        frozen("tied")


def test_random_masks_on_trained_frozen_layers_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(
        build_network(runs.config(method={"name": "dense"}), torch.device("cpu")).model.state_dict(), tmp_path / "n.pt"
    )
    for initial, is_said in (("random", True), ("magnitude", False)):
        caplog.clear()
        config = runs.config(
            model={**runs.BASE["model"], "weights": str(tmp_path / "n.pt")},
            sparsity={"initial": initial},
            train={"freeze": FIRST},
        )
        with caplog.at_level(logging.WARNING):
            build_network(config, torch.device("cpu"), read_sources(config))
        assert ("fc1.weight is frozen with a random mask" in caplog.text) is is_said


def test_state_that_an_optimizer_makes_at_once_lasts_until_a_layer_thaws() -> None:
    """Adagrad makes it where it is built, of frozen parameters too, and never again."""
    train = {"optimizer": {"name": "torch/Adagrad", "options": {"initial_accumulator_value": 0.1}}}
    config = frozen("rigl", train=train)
    whole = state_after(Worker(), config, None, None)
    half = state_after(Worker(), config, state_after(Worker(), config, None, 2), 5)
    half["progress"]["seconds"] = 0.0
    assert_same(state_after(Worker(), config, half, None), whole)
    thawed = frozen("rigl", train={**train, "freeze": []})
    for saved in (half, {**half, "optimizer": {**half["optimizer"], "fc1.weight": {}}}):
        after = state_after(Worker(), thawed, saved, None)
        assert not torch.equal(after["weights"]["fc1.weight"], half["weights"]["fc1.weight"])
