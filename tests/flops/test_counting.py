"""FLOPs of a forward pass, by hand and beside torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from dynsparse.flops import count
from dynsparse.models.torchvision_models import TorchvisionSettings


class Odd(nn.Module):
    """A standardised convolution, a depthwise one, a weight that is used twice, and a product of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.gain = nn.Parameter(torch.ones(8, 1, 1, 1))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.twice = nn.Linear(8, 8, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        weight = self.conv.weight
        weight = self.gain * (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
        x = functional.conv2d(images, weight, self.conv.bias, 2, 1)
        x = self.drop(self.norm(self.depthwise(x))).flatten(2).transpose(1, 2)  # 16 tokens of 8 channels
        x = self.twice(self.twice(x))
        return (x @ x.transpose(1, 2)).sum((1, 2))


def test_by_hand() -> None:
    counted = count(Odd(), (3, 8, 8))
    assert counted is not None
    assert counted.by_parameter == {
        "conv.weight": 2 * 16 * 8 * 3 * 9,  # multiply-adds: 16 positions, 8 outputs, 27 inputs
        "depthwise.weight": 2 * 16 * 8 * 9,
        "twice.weight": 2 * (2 * 16 * 8 * 8),
    }
    assert counted.rest == 2 * 16 * 8 * 16
    assert counted.total == 2 * (16 * 8 * 27 + 16 * 72 + 2 * 16 * 64 + 16 * 8 * 16)


def test_a_count_changes_nothing() -> None:
    model = Odd()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    count(model, (3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == [True, True, True, False, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["vit_b_16", "mobilenet_v3_small", "regnet_x_400mf"])
def test_as_much_as_torch_counts(name: str) -> None:
    with torch.device("meta"):
        model = TorchvisionSettings(name=f"torchvision/{name}").build((3, 64, 64), 10).to("meta")
    counted = count(model, (3, 64, 64))
    assert counted is not None
    counter = FlopCounterMode(display=False)
    with counter:  # In training attention takes the path of separate products.
        model.train()(torch.empty(2, 3, 64, 64, device="meta"))
    assert 2 * counted.total == counter.get_total_flops()
    assert (counted.rest > 0) == (name == "vit_b_16"), "attention alone multiplies activations"


class Looks(nn.Module):
    """Branches on what it sees, which shapes do not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.fc(images.flatten(1))
        return x if bool(x.sum() > 0) else -x


def test_what_cannot_be_counted_is_none() -> None:
    assert count(Looks(), (1, 2, 2)) is None
    assert count(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)), (1, 2, 2)) is None
