"""torch's optimizers by name: those that leave masked weights at 0, with options that fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn, optim

from dynsparse.config import loading
from dynsparse.errors import UserError
from dynsparse.optimizers import TorchSettings, leaves_zero_at_zero, more_names
from dynsparse.optimizers.named import options_of
from tests.training import runs


def refusal(name: str, **options: Any) -> str:
    raw = runs.config().as_dict()
    raw["train"]["optimizer"] = {"name": name, "options": options}
    with pytest.raises(UserError) as caught:
        loading.parse(raw)
    (line,) = str(caught.value).splitlines()
    return line


def test_all_of_torchs_own_are_offered_or_refused_with_a_reason() -> None:
    """A new one of another torch is refused until the front door knows it."""
    theirs = {name for name, one in vars(optim).items() if isinstance(one, type) and issubclass(one, optim.Optimizer)}
    offered = {name.removeprefix("torch/") for name in more_names()}
    assert offered < theirs
    for name in sorted(theirs - offered - {"Optimizer"}):
        assert f"torch.optim.{name} " in refusal(f"torch/{name}")


@pytest.mark.parametrize("name", more_names())
def test_each_is_built_with_its_defaults_and_sound(name: str) -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = TorchSettings(name=name).build([parameter], lr=0.25)
    assert type(optimizer).__name__ == name.removeprefix("torch/")
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert leaves_zero_at_zero(optimizer)
    plain = type(optimizer)([parameter], lr=0.25)
    assert {key: plain.param_groups[0][key] for key in options_of(type(optimizer))} == {
        key: optimizer.param_groups[0][key] for key in options_of(type(optimizer))
    }


def test_options_reach_the_optimizer() -> None:
    text = "{name: torch/RMSprop, options: {alpha: 0.9, eps: 1e-3, momentum: 0.5, centered: true}}"
    settings = loading.parse(runs.config().as_dict(), [f"train.optimizer={text}"])
    group = runs.trainer(settings).optimizer.param_groups[0]
    assert (group["alpha"], group["eps"], group["momentum"], group["centered"]) == (0.9, 1e-3, 0.5, True)
    assert loading.parse(settings.as_dict()) == settings
    nadam = TorchSettings(name="torch/NAdam", options={"betas": [0.8, 0.9]}).build([nn.Parameter(torch.zeros(1))], 1.0)
    assert nadam.param_groups[0]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torch/LBFGS", {}, "torch.optim.LBFGS evaluates a batch several times in a step; there are ASGD, Adadelta"),
        ("torch/radam", {}, "torch.optim has no 'radam' that keeps masked weights at 0; did you mean 'torch/RAdam'"),
        ("torch/xyz", {}, "torch.optim has no 'xyz' that keeps masked weights at 0; there are ASGD, Adadelta, "),
        ("rmsprop", {}, "unknown optimizer 'rmsprop'; there are sgd, adamw, lamb, torch/...; did you mean 'torch/RMSp"),
        ("torch/Adam", {"beta": 0.9}, "options: torch/Adam has no option 'beta'; did you mean 'betas'?"),
        ("torch/Adam", {"lr": 0.1}, "options.lr: the learning rate is set by train.lr"),
        ("torch/Adam", {"maximize": True}, "options.maximize: dynsparse sets it; leave it out"),
        ("torch/Adam", {"betas": [1.5, 0.9]}, "torch.optim.Adam refuses them (Invalid beta parameter at index 0: 1.5)"),
        ("torch/Adam", {"betas": 0.9}, "options: torch.optim.Adam refuses them ('float' object is not subscriptable)"),
        ("torch/SGD", {"nesterov": True}, "torch.optim.SGD refuses them (Nesterov momentum requires a momentum and"),
        ("torch/RMSprop", {"eps": 0}, "with these torch/RMSprop moves a masked weight, whose value and gradient are 0"),
        ("torch/RAdam", {"decoupled_weight_decay": "false"}, "of torch/RAdam is 'false'; it is true or false"),
        ("torch/Adam", {"amsgrad": 2}, "options: amsgrad of torch/Adam is '2'; it is true or false"),
        ("torch/SGD", {"dampening": "little"}, "options: dampening of torch/SGD is 'little'; it takes numbers"),
        ("torch/Adam", {"weight_decay": True}, "options: weight_decay of torch/Adam is 'True'; it takes numbers"),
        (
            "torch/RMSprop",
            {"alpha": {}},
            "optimizer.options: alpha must be a number, a word, true or false, or a list of",
        ),
        ("torch/RMSprop", {"alpha": float("nan")}, "train.optimizer.options: alpha must be finite"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(name: str, options: dict[str, Any], message: str) -> None:
    assert message in refusal(name, **options)
