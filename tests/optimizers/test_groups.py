"""Parameter groups: the decay and the rate of each parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dynsparse.errors import UserError
from dynsparse.optimizers import ParameterSettings, SgdSettings, described, parameter_groups, rate_of, set_rate
from pipelines.common.torchvision_ops import import_torchvision
from tests.training import runs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.head = nn.Linear(4, 2)


def by_name(model: nn.Module, **settings: Any) -> dict[str, tuple[float, float]]:
    """The decay and the factor of each parameter, as an optimizer has them."""
    optimizer = SgdSettings().build(parameter_groups(model, ParameterSettings(**settings)), lr=0.1)
    set_rate(optimizer, 1.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(one)]: (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for one in group["params"]
    }
    assert len(found) == len(names), "each parameter has a group"
    assert rate_of(optimizer) == 1.0
    return {name: found[name] for name in names.values()}


def test_alike_unless_asked() -> None:
    (group,) = parameter_groups(Net(), ParameterSettings())
    assert list(group) == ["params"]
    assert set(by_name(Net()).values()) == {(1e-4, 1.0)}


def test_norms_and_biases_do_not_decay() -> None:
    found = by_name(Net(), decay_norms_and_biases=False, no_decay=["tok*"])
    assert [name for name, (decay, _) in found.items() if decay] == ["conv.weight", "head.weight"]
    assert by_name(Net(), no_decay=["head.*"])["head.bias"] == (0.0, 1.0)
    assert by_name(Net(), no_decay=["head.*"])["norm.bias"] == (1e-4, 1.0)


def test_the_first_pattern_that_matches_sets_the_rate() -> None:
    found = by_name(Net(), lr_factors={"head.bias": 5.0, "head.*": 2.0, "conv.*": 0.5})
    assert {name: rate for name, (_, rate) in found.items() if rate != 1} == {
        "conv.weight": 0.5,
        "conv.bias": 0.5,
        "head.weight": 2.0,
        "head.bias": 5.0,
    }


def small_vit() -> nn.Module:
    import_torchvision()
    from torchvision.models import VisionTransformer

    sizes = {"image_size": 8, "patch_size": 4, "num_layers": 3, "num_heads": 1, "hidden_dim": 8, "mlp_dim": 8}
    model: nn.Module = VisionTransformer(**sizes, num_classes=3)
    return model


def test_layer_decay_counts_the_blocks_of_a_transformer() -> None:
    """Three blocks: a half for each from the head down to the embedding, which is before the first."""
    found = {name: rate for name, (_, rate) in by_name(small_vit(), layer_decay=0.5, lr_factors={"heads*": 3}).items()}
    assert found["heads.head.weight"] == 3.0
    assert found["encoder.ln.weight"] == 1.0
    for block, rate in enumerate((0.125, 0.25, 0.5)):
        inside = {rate for name, rate in found.items() if f"encoder_layer_{block}." in name}
        assert inside == {rate}
    outside = ("class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding")
    assert {found[name] for name in outside} == {0.0625}
    with pytest.raises(UserError, match=r"layer_decay is below 1, and the model has no chain of attention blocks"):
        by_name(Net(), layer_decay=0.5)


def test_patterns_that_match_nothing_name_the_nearest() -> None:
    with pytest.raises(UserError, match=r"train\.parameters\.no_decay: 'heat\.\*' matches no parameter; "):
        by_name(Net(), no_decay=["heat.*"])
    with pytest.raises(UserError, match=r"train\.parameters\.lr_factors: 'conv1\.weight' matches no.*'conv\.weight'"):
        by_name(Net(), lr_factors={"conv1.weight": 2.0})


def test_it_is_told_how_many_decay() -> None:
    settings = ParameterSettings(decay_norms_and_biases=False, lr_factors={"head.*": 0.1})
    lines = described(SgdSettings().build(parameter_groups(Net(), settings), lr=0.1))
    assert lines == [
        "weight decay 0.0001: 120 of 134 parameters, in 3 of 7 tensors",
        "weight decay 0: 14 of 134 parameters, in 4 of 7 tensors",
        "learning rate x 1: 124 of 134 parameters, in 5 of 7 tensors",
        "learning rate x 0.1: 10 of 134 parameters, in 2 of 7 tensors",
    ]


def test_tied_weights_decay_under_their_own_names() -> None:
    """Their bank has one dimension, and is no bias."""
    train = {"parameters": {"decay_norms_and_biases": False, "lr_factors": {"fc1.weight": 0.5}}}
    trainer = runs.trainer(runs.config(method={"name": "tied"}, train=train))
    groups = trainer.optimizer.param_groups
    banks = {id(layer.weight): layer.name for layer in trainer.network.tied}
    decaying = {banks.get(id(one)) for group in groups if group["weight_decay"] for one in group["params"]}
    assert decaying == set(banks.values())
    assert [banks[id(one)] for group in groups if "lr_factor" in group for one in group["params"]] == ["fc1.weight"]
