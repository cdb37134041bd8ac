"""Each optimizer through the whole trainer: masks, checkpoints, several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.optimizers import more_names
from dynsparse.runtime import Worker
from dynsparse.training.checkpoint.agreement import first_problem
from dynsparse.training.compatibility import require_same_settings
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_every_method import stopped_and_resumed
from tests.training.test_loop import CNN, Recorder, assert_zero_outside
from tests.training.test_resume import FAULTY_RUN, assert_same, state_after

QUICK = ("lamb", "torch/Adafactor", "torch/ASGD", "torch/Adagrad")
"""Optimizers whose state differs in kind from that of the others."""


def settings(optimizer: str, **sections: Any) -> RunConfig:
    train = {"lr": {"name": "constant", "peak": 0.01}, **sections.pop("train", {})}
    return runs.config(model=CNN, train={"optimizer": {"name": optimizer}, **train}, **sections)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in more_names() if name not in QUICK)]
)
def test_stopped_and_resumed(name: str) -> None:
    """A checkpoint of it is in order, and holds all that the next step depends on. Weights outside the masks are 0."""
    config = settings(name)
    whole = state_after(Worker(), config, None, None)
    half = state_after(Worker(), config, None, 5)
    half["progress"]["seconds"] = 0.0
    assert first_problem(half) is None
    assert_same(state_after(Worker(), config, half, None), whole)
    trainer = runs.trainer(config)
    trainer.fit()
    trainer.masks.check()
    assert trainer.progress.reallocations > 0
    if name not in ("torch/Adafactor", "torch/Adamax", "torch/Rprop"):  # State of rows, of eps, of the smallest step.
        assert_zero_outside(trainer)


@pytest.mark.parametrize(
    ("name", "options", "missing"),
    [
        ("Adam", {"amsgrad": True}, "max_exp_avg_sq"),
        ("RMSprop", {"momentum": 0.9, "centered": True}, "grad_avg or momentum_buffer"),
    ],
)
def test_options_that_need_other_state_are_refused_at_a_resume(
    name: str, options: dict[str, Any], missing: str
) -> None:
    plain, more = ({"name": f"torch/{name}", "options": each} for each in ({}, options))
    half = state_after(Worker(), runs.config(train={"optimizer": plain}), None, 2)
    with pytest.raises(UserError, match=f"the checkpoint's optimizer has no {missing}, which torch/{name} keeps with"):
        require_same_settings(half, runs.config(train={"optimizer": more}))


def test_options_that_need_less_state_go_on() -> None:
    """Momentum after none goes on too: all of it begins at 0, as in a new run."""
    for before, now in (({"momentum": 0.9}, {}), ({}, {"momentum": 0.9})):
        first, second = (runs.config(train={"optimizer": {"name": "torch/SGD", "options": o}}) for o in (before, now))
        assert state_after(Worker(), second, state_after(Worker(), first, None, 2), None)["progress"]["epoch"] == 2


GROUPED = {
    "parameters": {"decay_norms_and_biases": False, "lr_factors": {"fc.*": 0.5}},
    "lr": {"name": "polynomial", "peak": 0.02, "warmup_steps": 3},
    "clip": {"norm": 1.0},
    "early_stop": {"patience": 5},
    "evaluate_every_epochs": 2,
}
"""The options of this recipe together."""


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_all_options_together_on_several_ranks(ranks: int) -> None:
    config = settings("lamb", train=GROUPED)
    whole, resumed = run_distributed(stopped_and_resumed, ranks, config)[0]
    assert_same(resumed, whole)
    assert first_problem(whole) is None
    assert whole["progress"]["reallocations"] > 0


def weights_after(worker: Worker, config: RunConfig) -> torch.Tensor:
    trainer = runs.trainer(config, worker)
    trainer.fit()
    return nn.utils.parameters_to_vector(trainer.model.parameters()).detach()


def test_workers_train_the_same_network_but_for_rounding() -> None:
    """BatchNorm is left out, since its statistics are those of a worker's share."""
    model = {"name": "mnist_mlp", "hidden": [24, 12], "batch_norm": False}
    train = {**GROUPED, "clip": {"norm": 0.3, "value": 0.1}, "parameters": {"lr_factors": {"fc1.*": 0.5}}}
    config = runs.config(model=model, method={"name": "static"}, train=train)
    alone = weights_after(Worker(), config)
    results = run_distributed(weights_after, 3, config)
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.allclose(results[0], alone, atol=1e-5)


@pytest.mark.slow  # The tests above say it of runs that end themselves.
def test_killed_in_mid_epoch_and_resumed(tmp_path: Path) -> None:
    """SIGKILL within an epoch that is not evaluated, on two workers: all lines and digests are those of a whole run."""
    whole, killed = (
        settings("lamb", name=name, runs=str(tmp_path), train={"epochs": 4, **GROUPED}, checkpoint={"every_steps": 3})
        for name in ("whole", "killed")
    )
    assert runs.dist_train("--config", runs.write_config(tmp_path, whole), workers=2).returncode == 0
    command = ["--config", runs.write_config(tmp_path, killed), "--resume", "auto"]
    assert runs.dist_train(*command, workers=2, script=FAULTY_RUN, FAULTS="kill 1 step 20").returncode != 0
    finished = runs.dist_train(*command, workers=2)
    assert finished.returncode == 0, finished.stderr
    assert "resuming from" in finished.stderr
    assert runs.summary(killed.folder)["rank_digests"] == runs.summary(whole.folder)["rank_digests"]
    lines = runs.metrics(whole.folder)
    assert runs.metrics(killed.folder) == lines
    assert all(line["gradient_norm"] > 0 for line in lines if line["kind"] == "epoch")


def test_the_rate_that_is_reported_is_the_schedules() -> None:
    recorder = Recorder()
    train = {"parameters": {"lr_factors": {"*": 0.5}}, "lr": {"name": "linear", "peak": 0.08}}
    trainer = runs.trainer(
        settings("sgd", train=train, log={"every_steps": 1, "progress": "none"}), observers=[recorder]
    )
    trainer.fit()
    assert [report.lr for report in recorder.steps] == pytest.approx([0.08 * (1 - step / 16) for step in range(16)])
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {recorder.steps[-1].lr * 0.5}


def test_a_checkpoint_of_adafactor_on_linear_layers_too() -> None:
    """Its rows and columns have two dimensions there, as stored moments of sparse layers have."""
    config = runs.config(train={"optimizer": {"name": "torch/Adafactor"}})
    whole = state_after(Worker(), config, None, None)
    half = state_after(Worker(), config, None, 5)
    half["progress"]["seconds"] = 0.0
    assert list(half["optimizer"]["fc1.weight"]["row_var"].shape) == [24, 1]
    assert first_problem(half) is None
    assert_same(state_after(Worker(), config, half, None), whole)
