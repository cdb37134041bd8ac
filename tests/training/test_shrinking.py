"""Runs whose networks lose channels: the same function, the same budget, and a resume that goes on bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dynsparse.config.schema import RunConfig
from dynsparse.runtime import Worker
from dynsparse.training.trainer import Trainer
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_resume import assert_same, state_after

CNN = {"name": "small_cnn", "channels": [8, 12, 16]}
METHODS = {
    "static": {"name": "static"},
    "rigl": {"name": "rigl", "period": 3, "fraction": 0.3},
    "set": {"name": "set", "period": 2, "fraction": 0.3},
    "dsr": {"name": "dsr", "period": 3, "target_moves": 20},
}


def config(method: str = "static", shrink: Any = (1,), **sections: Any) -> RunConfig:
    """Three epochs of eight steps; at 95 % zeros some channels have no active weight."""
    train = {"epochs": 3, "shrink": {"at": list(shrink)} if shrink else None, **sections.pop("train", {})}
    data = {"name": "synthetic", "shape": [1, 8, 8], "samples": 100, "test_samples": 50, "threads": 1}
    sections = {"sparsity": {"conv": 0.95, "fc": 0.5}, "data": data, **sections}
    return runs.config(model=CNN, method=METHODS[method], train=train, **sections)


def at_shrink(trainer: Trainer) -> None:
    """Train up to the first shrink, which is still to come."""
    epoch = trainer.config.train.shrink.at[0]  # type: ignore[union-attr]
    trainer._start()
    while trainer.progress.epoch < epoch:
        trainer._train_epoch()
        trainer._finish_epoch()


def outputs(model: torch.nn.Module, images: Tensor) -> Tensor:
    """Compute as in evaluation, and leave the modes as they are."""
    training = model.training
    with torch.no_grad():
        found: Tensor = model.eval()(images)
    model.train(training)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_the_same_function_and_budget_in_a_smaller_network(method: str) -> None:
    trainer = runs.trainer(config(method, train={"ema": {"decay": 0.7}, "optimizer": {"name": "adamw"}}))
    at_shrink(trainer)
    images = torch.randn(5, 1, 8, 8)
    ema = trainer.ema
    assert ema is not None
    before, parameters = [outputs(m, images) for m in (trainer.model, ema.model)], trainer.network.parameters
    active, total = trainer.network.active_weights, trainer.network.total_parameters
    trainer._shrink_if_due()
    for model, expected in zip((trainer.model, ema.model), before, strict=True):
        torch.testing.assert_close(outputs(model, images), expected, atol=1e-6, rtol=1e-5)
    assert trainer.network.parameters < parameters
    assert trainer.network.active_weights == trainer.masks.budget == active
    assert trainer.network.total_parameters == total
    trainer.masks.check()
    shapes = {name: value.shape for name, value in trainer.model.named_parameters()}
    for name, parameter in trainer.model.named_parameters():
        moments = [v for v in trainer.optimizer.state[parameter].values() if v.dim() > 0]
        assert len(moments) == 2 and all(moment.shape == shapes[name] for moment in moments)
    trainer._train_epoch()
    trainer.masks.check()


SETTINGS: dict[str, dict[str, Any]] = {
    "static, momentum": {},
    "rigl, adamw, ema": {"method": "rigl", "train": {"optimizer": {"name": "adamw"}, "ema": {"decay": 0.7}}},
    "dsr, fp16, two shrinks": {"method": "dsr", "shrink": (1, 2), "train": {"precision": "fp16"}},
    "set, channels_last, adagrad": {
        "method": "set",
        "train": {"channels_last": True, "optimizer": {"name": "torch/Adagrad"}},
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_resumed_before_and_after_a_shrink(name: str) -> None:
    """Steps 8 and 16 end epochs: a shrink comes at once after a resume from there."""
    settings, alone = config(**SETTINGS[name]), Worker()
    whole = state_after(alone, settings, None, None)
    assert any(one["modules"] for one in whole["shrinkages"])
    for stop in (5, 8, 9, 16, 20):
        half = state_after(alone, settings, None, stop)
        half["progress"]["seconds"] = 0.0
        assert_same(state_after(alone, settings, half, None), whole, f"{name}, step {stop}")


@pytest.mark.parametrize(
    ("world_size", "sections"),
    [
        (2, {"method": "rigl", "train": {"ema": {"decay": 0.7}}, "distributed": {"gradients": "active"}}),
        pytest.param(3, {"method": "dsr", "train": {"optimizer": {"name": "adamw"}}}, marks=pytest.mark.slow),
    ],
)
def test_resumed_on_several_ranks(world_size: int, sections: dict[str, Any]) -> None:
    settings = config(**sections)
    whole = run_distributed(state_after, world_size, settings, None, None)[0]
    assert any(one["modules"] for one in whole["shrinkages"])
    for stop in (8, 11):
        half = run_distributed(state_after, world_size, settings, None, stop)[0]
        half["progress"]["seconds"] = 0.0
        assert_same(run_distributed(state_after, world_size, settings, half, None)[0], whole)
