from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from dynsparse.masks.granularity import Kind
from dynsparse.models.resnet50 import ResNet50Settings
from pipelines.common.torchvision_ops import import_torchvision
from tests.models.counting import Counts, counts, parameters, specs, without_weights

SHAPE = (3, 224, 224)


def settings(**options: Any) -> ResNet50Settings:
    return ResNet50Settings.model_validate({"name": "imagenet_resnet50", **options})


@pytest.fixture(scope="module")
def ours() -> nn.Module:
    torch.manual_seed(0)
    return settings().build(SHAPE, 1000)


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    import_torchvision()
    import torchvision

    torch.manual_seed(1)
    model: nn.Module = torchvision.models.resnet50(weights=None)
    return model


def test_initial_distributions(ours: nn.Module) -> None:
    for module in ours.modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels))
            # The first layers have few weights: five standard errors of their standard deviation.
            rel = max(0.02, 5 / math.sqrt(2 * module.weight.numel()))
            assert float(module.weight.detach().std()) == pytest.approx(std, rel=rel)
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())
    linear = ours.fc.weight.detach()
    bound = 1 / math.sqrt(2048)
    assert float(linear.abs().max()) <= bound
    assert float(linear.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_it_is_torchvisions(ours: nn.Module, theirs: nn.Module) -> None:
    """The state_dict loads both ways; outputs and one training step are the same to the bit."""
    ours, theirs = copy.deepcopy(ours), copy.deepcopy(theirs)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.manual_seed(2)
    with torch.no_grad():  # No norm at its initial value, so that a swap of two of them shows.
        for parameter in theirs.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 999])
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))
    losses = []
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
        logits = model.train()(images)
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        losses.append(logits.detach())
        model.zero_grad()
    assert torch.equal(*losses)
    stepped = theirs.state_dict()
    assert all(torch.equal(tensor, stepped[name]) for name, tensor in ours.state_dict().items())


def test_sparse_layers() -> None:
    model = without_weights(settings(), SHAPE, 1000)
    names = [layer.name for layer in specs(settings(), model)]
    assert len(names) == 16 * 3 + 1
    assert names[:4] == [f"layer1.{block}.weight" for block in ("0.conv1", "0.conv2", "0.conv3", "1.conv1")]
    assert names[-1] == "fc.weight"
    more = {layer.name for layer in specs(settings(sparse_downsample=True), model)}
    assert more - set(names) == {f"layer{i}.0.downsample.0.weight" for i in (1, 2, 3, 4)}
    weights = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    assert weights - more == {"conv1.weight"}


@pytest.mark.parametrize(
    ("sparsity", "downsample", "expected"),
    [
        # The paper's "80 %" and "90 %": 71.1 % and 80.0 % of all parameters.
        (0.8, False, Counts(sparse=22_724_608, active=4_544_923, left=7_377_347)),
        (0.9, False, Counts(sparse=22_724_608, active=2_272_459, left=5_104_883)),
        (0.8, True, Counts(sparse=25_493_504, active=5_098_702, left=5_162_230)),
        (0.9, True, Counts(sparse=25_493_504, active=2_549_348, left=2_612_876)),
    ],
)
def test_weights_left(sparsity: float, downsample: bool, expected: Counts) -> None:
    model = without_weights(settings(), SHAPE, 1000)
    assert parameters(model) == 25_557_032
    share: dict[Kind, float] = {"conv": sparsity, "fc": sparsity}
    assert counts(settings(sparse_downsample=downsample), model, share) == expected


def test_widths_scale_and_images_may_be_of_any_shape() -> None:
    model = settings(widen_factor=0.17).build((1, 40, 33), 7)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes["conv1.weight"] == (11, 1, 7, 7)
    assert shapes["layer2.0.conv3.weight"] == (4 * 22, 22, 1, 1)
    assert shapes["fc.weight"] == (7, 4 * 87)
    assert model(torch.zeros(2, 1, 40, 33)).shape == (2, 7)
