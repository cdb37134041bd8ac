"""Options of the own residual networks: zero-initialised gammas, stochastic depth, dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dynsparse.config import loading
from dynsparse.errors import UserError
from dynsparse.models.resnet50 import Bottleneck, ResNet50Settings
from dynsparse.models.stochastic_depth import DropPath, rising
from dynsparse.models.wide_resnet import WideResNetSettings
from pipelines.common.torchvision_ops import import_torchvision

RESNET = {"name": "imagenet_resnet50", "widen_factor": 0.125}
WIDE = {"name": "cifar10_WideResNet", "depth": 16, "widen_factor": 0.25}


def resnet(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return ResNet50Settings.model_validate({**RESNET, **options}).build((3, 32, 32), 5)


def wide(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return WideResNetSettings.model_validate({**WIDE, **options}).build((3, 16, 16), 5)


def test_a_branch_is_left_out_for_whole_samples() -> None:
    torch.manual_seed(0)
    layer, branch = DropPath(0.25), torch.ones(4000, 3, 2, 2)
    kept = layer(branch)
    by_sample = kept.flatten(1)
    assert {float(value) for value in by_sample.unique()} == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert bool((by_sample == by_sample[:, :1]).all()), "all of a sample, or nothing of it"
    assert abs(float((by_sample[:, 0] == 0).float().mean()) - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
    assert layer.eval()(branch) is branch
    assert DropPath(0)(branch) is branch


def test_as_torchvision_draws_it() -> None:
    import_torchvision()
    from torchvision.ops import StochasticDepth

    branch = torch.randn(64, 3, 4, 4)
    torch.manual_seed(1)
    ours = DropPath(0.4)(branch)
    torch.manual_seed(1)
    assert torch.equal(ours, StochasticDepth(0.4, "row")(branch))


def test_probabilities_rise_from_the_first_block_to_the_last() -> None:
    assert list(rising(5, 0.2)) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert list(rising(1, 0.2)) == [0]
    for model, blocks in ((resnet(drop_path_rate=0.3), 16), (wide(drop_path_rate=0.3), 6)):
        found = [module.p for module in model.modules() if isinstance(module, DropPath)]
        assert found == list(rising(blocks, 0.3))


@pytest.mark.parametrize("build", [resnet, wide])
def test_options_change_training_alone(build: Any) -> None:
    plain, other = build(), build(drop_path_rate=0.5, dropout=0.5)
    assert list(plain.state_dict()) == list(other.state_dict())
    assert all(torch.equal(one, other.state_dict()[name]) for name, one in plain.state_dict().items())
    images = torch.randn(4, 3, 32, 32)
    state = torch.get_rng_state()
    plain(images)
    assert torch.equal(torch.get_rng_state(), state), "off, nothing is drawn"
    plain, other = build(), build(drop_path_rate=0.5, dropout=0.5)
    assert not torch.equal(plain(images), other(images))
    plain, other = build().eval(), build(drop_path_rate=0.5, dropout=0.5).eval()
    assert torch.equal(plain(images), other(images))


def test_a_block_begins_as_the_identity() -> None:
    model, plain = resnet(zero_init_residual=True), resnet()
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    assert len(blocks) == 16 and all(int(block.bn3.weight.count_nonzero()) == 0 for block in blocks)
    second, x = blocks[1].eval(), torch.rand(2, 32, 4, 4)
    assert torch.equal(second(x), x), "what comes in is not negative"
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(int(block.bn3.weight.grad.count_nonzero()) > 0 for block in blocks), "it learns to be another"
    same = [name for name, one in model.state_dict().items() if torch.equal(one, plain.state_dict()[name])]
    assert set(plain.state_dict()) - set(same) == {
        f"layer{layer}.{block}.bn3.weight" for layer, blocks in enumerate((3, 4, 6, 3), 1) for block in range(blocks)
    } | {name for name in plain.state_dict() if "running" in name or "num_batches" in name}


@pytest.mark.parametrize("option", ["drop_path_rate", "dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_probabilities_outside_their_range(option: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"model\.{option}: is {value:g}"):
        loading.parse({"model": {**RESNET, option: value}, "method": {"name": "dense"}, "data": {"name": "synthetic"}})
