"""Each method through the whole trainer: stopped and resumed, and the options that came with the paper's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.distributed import sync
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.training.callbacks import Callback, EpochReport
from dynsparse.training.callbacks.metrics_file import MetricsFile
from dynsparse.training.callbacks.tensorboard import TensorBoard
from dynsparse.training.checkpoint import CheckpointFolder, read
from tests.methods.test_contract import ONCE, REGISTRY, sparsity_section
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_resume import assert_same, state_after

#: Settings under which something happens in the 16 steps of two epochs.
BUSY: dict[str, dict[str, Any]] = {
    "acdc": {"density": ONCE},
    "chase": {"period": 3, "channels_until": 0.6},
    "chts": {"period": 3},
    "deepr": {"eta": 1.0, "temperature": 1e-4},
    "dsr": {"period": 3, "initial_threshold": 0.02, "target_moves": 30, "new_weights": "initial"},
    "gmp": {"period": 3},
    "granet": {"period": 3},
    "mest": {"period": 3},
    "nm": {"period": 3},
    "pruning": {"after_epoch": 0, "every_epochs": 1, "iterations": 2, "target_fc": 0.8},
    "rigl": {"period": 3},
    "set": {"period": 3, "scaling": True},
    "sparse_momentum": {},
    "srigl": {"period": 3, "ablation": 0.5},
    "tied": {"rescale_gradient": True},
    "topkast": {"period": 3},
}


def settings(name: str, **sections: Any) -> RunConfig:
    start = {"weights_from": "unread"} if name == "pruning" else {}
    train = {"penalty": {"l1": 1e-4}, **sections.pop("train", {})}
    sections["sparsity"] = {**sparsity_section(name), **sections.pop("sparsity", {})}
    return runs.config(method={"name": name, **BUSY.get(name, {})}, start=start, train=train, **sections)


def stopped_and_resumed(worker: Worker, config: RunConfig) -> tuple[Any, Any]:
    """Return the last states of two runs: one undisturbed, one stopped in mid-epoch and resumed."""
    whole = state_after(worker, config, None, None)
    mine = state_after(worker, config, None, 11)
    half = sync.from_rank_0(lambda: mine)  # Its state has the parts of all ranks.
    half["progress"]["seconds"] = 0.0
    return whole, state_after(worker, config, half, None)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_stopped_and_resumed(name: str) -> None:
    """Two ranks: all that a checkpoint would hold is equal in the end."""
    whole, resumed = run_distributed(stopped_and_resumed, 2, settings(name))[0]
    assert_same(resumed, whole)
    assert (whole["progress"]["reallocations"] > 0) == (name not in ("dense", "static", "tied"))


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_resolved_config_is_read_back(name: str) -> None:
    """A run's folder holds the config with all defaults, which must not count as options that were set."""
    config = settings(name)
    assert loading.parse(yaml.safe_load(config.as_yaml())) == config


class Epochs(Callback):
    def __init__(self) -> None:
        self.reports: list[EpochReport] = []

    def on_epoch(self, report: EpochReport) -> None:
        self.reports.append(report)


def test_tied_layers_are_reported_as_sparse_ones_are(tmp_path: Path) -> None:
    epochs = Epochs()
    trainer = runs.trainer(
        settings("tied"), observers=[epochs, MetricsFile(tmp_path / "m.jsonl"), TensorBoard(tmp_path)]
    )
    summary = trainer.fit()
    weights = 24 * 36 + 24 * 12 + 12 * 10
    assert summary.sparse_layer_weights == weights
    assert summary.active_weights == sum(round(0.2 * n) for n in (24 * 36, 24 * 12, 12 * 10))
    assert summary.sparsity == pytest.approx(0.8, abs=0.001)
    assert summary.total_parameters == weights + 2 * (24 + 12 + 10)
    assert summary.layers["fc1.weight"]["active_weights"] == round(0.2 * 24 * 36)
    assert epochs.reports[0].active == {name: layer["active_weights"] for name, layer in summary.layers.items()}
    assert epochs.reports[0].active_weights["fc1.weight"].numel() == round(0.2 * 24 * 36)
    assert "tied layers" in trainer.network.table()


def test_held_out_samples_choose_the_best_epoch(tmp_path: Path) -> None:
    epochs = Epochs()
    config = runs.config(data={"validation_samples": 20, "noise": 250.0}, train={"epochs": 3, "evaluate_train": True})
    checkpoints = CheckpointFolder(tmp_path, keep=1)
    trainer = runs.trainer(config, observers=[epochs], checkpoints=checkpoints)
    summary = trainer.fit()
    validation = [report.results.validation.top1 for report in epochs.reports if report.results.validation]
    assert summary.best_top1 == max(validation)
    best = validation.index(max(validation))
    assert summary.test_top1_at_best == epochs.reports[best].results.test.top1
    assert read(tmp_path / "best.pt")["progress"]["epoch"] == best + 1
    last = epochs.reports[-1].results
    assert last.validation is not None
    assert last.train is not None
    assert (last.test.samples, last.validation.samples, last.train.samples) == (50, 20, 80)
    assert summary.steps == 3 * (80 // 12)


def test_a_run_may_begin_at_a_later_epoch(tmp_path: Path) -> None:
    """Schedules, the order of samples and the number of epochs refer to it; a resume takes the checkpoint's epoch."""
    epochs = Epochs()
    lr = {"name": "steps", "table": {0: 0.5, 2: 0.05}}
    config = runs.config(train={"epochs": 4, "start_epoch": 2, "lr": lr})
    checkpoints = CheckpointFolder(tmp_path, keep=9)
    summary = runs.trainer(config, observers=[epochs], checkpoints=checkpoints).fit()
    assert [report.epoch for report in epochs.reports] == [2, 3]
    assert [report.lr for report in epochs.reports] == [0.05, 0.05]
    assert (summary.epochs, summary.steps) == (4, 32)
    initial = read(tmp_path / "initial.pt")
    assert (initial["progress"]["epoch"], initial["progress"]["step"]) == (2, 16)
    resumed = runs.trainer(config)
    resumed.load(read(tmp_path / "step-000000024.pt"))
    assert resumed.fit().weight_digest == summary.weight_digest


def test_events_of_every_step_are_reported_now_and_then(tmp_path: Path) -> None:
    """DeepR moves weights after each of 16 steps; with log.every_steps 4 four of these are lines."""
    observer = MetricsFile(tmp_path / "metrics.jsonl")
    summary = runs.trainer(settings("deepr"), observers=[observer]).fit()
    assert summary.reallocations == 16
    assert [line["step"] for line in runs.metrics(tmp_path) if line["kind"] == "reallocation"] == [4, 8, 12, 16]


def test_granularity_needs_a_sparse_convolution(tmp_path: Path) -> None:
    path = runs.write_config(tmp_path, runs.config(sparsity={"granularity": 2}))
    done = runs.dist_train("--config", path, "--dry-run")
    assert done.returncode == 2
    assert done.stderr == (
        "error: sparsity.granularity is 2; mnist_mlp has no sparse convolution here, and linear layers are always "
        "elementwise: leave it at 4\n"
    )


def begun(worker: Worker, config: RunConfig) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in runs.trainer(config, worker).model.parameters()]


def test_all_ranks_tie_alike() -> None:
    first, second = run_distributed(begun, 2, settings("tied"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_best_of_a_pruning_run_is_pruned(tmp_path: Path) -> None:
    """An epoch before the last prune is of another network."""
    pruning = {"name": "pruning", "after_epoch": 1, "every_epochs": 1, "iterations": 2, "target_fc": 0.8}
    config = runs.config(method=pruning, start={"weights_from": "unread"}, train={"epochs": 4})
    epochs = Epochs()
    checkpoints = CheckpointFolder(tmp_path, keep=9)
    summary = runs.trainer(config, observers=[epochs], checkpoints=checkpoints).fit()
    assert [report.best_top1 is None for report in epochs.reports] == [True, True, False, False]
    assert summary.best_top1 == max(report.results.test.top1 for report in epochs.reports[2:])
    best = read(tmp_path / "best.pt")
    assert best["progress"]["epoch"] >= 3
    assert best["masks"]["budget"] == summary.active_weights


@pytest.mark.parametrize(("period", "warned"), [(15, False), (16, True)])
def test_a_period_longer_than_the_run_is_said(period: int, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    runs.trainer(runs.config(method={"name": "set", "period": period})).fit()
    assert ("method set will move nothing in the 16 steps to come (8 an epoch)" in caplog.text) == warned


def test_more_moves_than_there_are_units_are_refused() -> None:
    with pytest.raises(UserError, match=r"method\.target_moves is 600; the network has 255 active units in all: take"):
        runs.trainer(runs.config(method={"name": "dsr", "target_moves": 600}))


@pytest.mark.parametrize("name", ["pruning", "rigl", "set", "sparse_momentum"])
def test_a_diverged_run_ends_with_a_reason(name: str) -> None:
    """It ends with a UserError, not with an assertion."""
    lr = {"name": "steps", "table": 1e9}
    with pytest.raises(
        UserError,
        match=r"(weights that are NaN at step|steps in a row, the last of them step) \d+.*training has diver",
    ):
        runs.trainer(settings(name, train={"lr": lr, "epochs": 4})).fit()


def test_tied_weights_of_another_seed_are_refused() -> None:
    saved = runs.trainer(settings("tied"))
    state = saved.run.save([saved.run.of_this_rank()])
    with pytest.raises(UserError, match=r"made with seed 3, this run has 4; the seed says which weights are tied"):
        runs.trainer(settings("tied", seed=4)).run.load_network(state)
