from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dynsparse.models.wide_resnet import Block, WideResNetSettings
from tests.models.counting import Counts, counts, parameters, specs, without_weights


def settings(**options: float) -> WideResNetSettings:
    return WideResNetSettings.model_validate({"name": "cifar10_WideResNet", **options})


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ({}, 36_479_194),  # WRN-28-10, the defaults
        ({"widen_factor": 2}, 1_467_610),
        ({"depth": 16, "widen_factor": 1}, 175_066),
    ],
)
def test_parameter_counts(options: dict[str, float], total: int) -> None:
    """The counts are those for CIFAR-10; the paper gives 36.5 million for WRN-28-10."""
    assert parameters(without_weights(settings(**options), (3, 32, 32), 10)) == total


def test_sparse_layers_are_the_3x3_convolutions_of_the_blocks() -> None:
    model = without_weights(settings(widen_factor=2), (3, 32, 32), 10)
    layers = specs(settings(), model)
    assert len(layers) == 3 * 4 * 2
    assert all(layer.kind == "conv" and layer.shape[2:] == (3, 3) for layer in layers)
    assert [layer.name for layer in layers][:3] == [
        "group1.0.conv1.weight",
        "group1.0.conv2.weight",
        "group1.1.conv1.weight",
    ]
    dense = {name for name, parameter in model.named_parameters() if parameter.dim() > 1} - {x.name for x in layers}
    shortcuts = {f"group{i}.0.shortcut.weight" for i in (1, 2, 3)}
    assert dense == {"conv1.weight", "fc.weight"} | shortcuts


@pytest.mark.parametrize(
    ("sparsity", "active"), [(0.5, 725_760), (0.6, 580_605), (0.7, 435_457), (0.8, 290_303), (0.9, 145_155)]
)
def test_weights_left_in_wrn_28_2(sparsity: float, active: int) -> None:
    model = without_weights(settings(widen_factor=2), (3, 32, 32), 10)
    # 16,090 parameters stay dense.
    expected = Counts(sparse=1_451_520, active=active, left=16_090 + active)
    assert counts(settings(), model, {"conv": sparsity, "fc": 0.0}) == expected


def test_fractional_widths_are_rounded() -> None:
    model = settings(depth=10, widen_factor=0.7).build((1, 9, 5), 7)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes["conv1.weight"] == (16, 1, 3, 3)
    assert [shapes[f"group{i}.0.conv2.weight"][0] for i in (1, 2, 3)] == [11, 22, 45]
    assert model(torch.zeros(2, 1, 9, 5)).shape == (2, 7)


def test_no_width_is_rounded_to_nothing() -> None:
    assert settings(depth=10, widen_factor=0.001).build((3, 4, 4), 2)(torch.zeros(2, 3, 4, 4)).shape == (2, 2)


def test_initial_distributions() -> None:
    torch.manual_seed(0)
    model = settings(depth=10, widen_factor=8).build((3, 32, 32), 100)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            std = math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels))
            assert float(module.weight.detach().std()) == pytest.approx(std, rel=0.02)
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())
        assert not isinstance(module, nn.Conv2d) or module.bias is None
    linear = model.fc.weight.detach()
    bound = 1 / math.sqrt(512)
    assert float(linear.abs().max()) <= bound
    assert float(linear.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(("c_in", "c_out", "stride", "projects"), [(4, 4, 1, False), (4, 6, 1, True), (4, 4, 2, True)])
def test_a_block_is_the_published_one(c_in: int, c_out: int, stride: int, projects: bool) -> None:
    """Identity where the shape stays; else a convolution of what went through the first BatchNorm and ReLU."""
    torch.manual_seed(0)
    block = Block(c_in, c_out, stride).eval()
    x = torch.randn(2, c_in, 6, 6)

    def norm(x: Tensor) -> Tensor:  # BatchNorm as it is before any training.
        return (x / math.sqrt(1 + 1e-5)).relu()

    def conv(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
        return nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    inner = conv(norm(conv(norm(x), block.conv1.weight, stride)), block.conv2.weight)
    assert (block.shortcut is not None) == projects
    beside = x if block.shortcut is None else conv(norm(x), block.shortcut.weight, stride)
    torch.testing.assert_close(block(x), beside + inner)


@pytest.mark.parametrize(("depth", "near"), [(27, "22 or 28"), (29, "28 or 34"), (4, "10"), (-3, "10")])
def test_depth_must_be_whole_blocks(depth: int, near: str) -> None:
    with pytest.raises(ValidationError, match=rf"depth is {depth}; a wide ResNet has 6n \+ 4 layers: take {near}"):
        settings(depth=depth)
