"""Channels that do nothing go, and the network computes what it did."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.shrinking import compact, groups
from pipelines.common.torchvision_ops import import_torchvision


def filled(layer: nn.Linear | nn.Conv2d, weight: list[list[float]], bias: list[float] | None = None) -> None:
    layer.weight.data = torch.tensor(weight, dtype=torch.float32).reshape(layer.weight.shape)
    if bias is not None:
        assert layer.bias is not None
        layer.bias.data = torch.tensor(bias, dtype=torch.float32)


def test_by_hand() -> None:
    """Neuron 0 works. Nobody reads neuron 1. Neuron 2 is 3 for every image, neuron 3 is relu(-1) = 0."""
    first, second = nn.Linear(2, 4), nn.Linear(4, 2)
    filled(first, [[1, 2], [5, 6], [0, 0], [0, 0]], [0.5, 7, 3, -1])
    filled(second, [[1, 0, 2, 9], [4, 0, -1, 9]], [10, 20])
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second).eval().requires_grad_(False)
    found = compact(model, (2, 1, 1))
    assert first.weight.tolist() == [[1, 2]]
    assert second.weight.tolist() == [[1], [4]]
    assert second.bias.tolist() == [10 + 2 * 3, 20 - 1 * 3]
    assert found.layers == {"1.weight": ((4, 2), (1, 2)), "3.weight": ((2, 4), (2, 1))}
    assert found.left_alone == {}
    assert found.difference <= 1e-5


def test_what_fed_a_dead_channel_alone_dies_with_it() -> None:
    first, second, third = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
    filled(second, [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    filled(third, [[1, 1, 0], [1, 2, 0]])
    compact(nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), third).eval(), (3, 1, 1))
    assert (len(first.weight), len(second.weight)) == (2, 2)


def test_a_constant_goes_into_a_bias_but_for_a_border() -> None:
    """Channel 1 is 4 everywhere by its BatchNorm. A convolution that pads sees 4 inside and 0 outside."""
    for padding, left in ((0, 1), (1, 2)):
        norm, reader = nn.BatchNorm2d(2), nn.Conv2d(2, 1, 3, padding=padding, bias=False)
        norm.bias.data[:] = torch.tensor([1.0, 4.0])
        writer = nn.Conv2d(1, 2, 1, bias=False)
        writer.weight.data[1] = 0
        weight = reader.weight.detach().clone()
        compact(nn.Sequential(writer, norm, nn.ReLU(), reader).eval(), (1, 6, 6))
        assert reader.in_channels == writer.out_channels == norm.num_features == left
        if padding == 0:
            assert reader.bias.tolist()[0] == pytest.approx(4 * float(weight[0, 1].sum()), rel=1e-5)  # type: ignore[union-attr]
        else:
            assert reader.bias is None


def test_a_channel_stays_of_a_group_that_is_dead() -> None:
    first, second = nn.Linear(2, 3), nn.Linear(3, 2)
    second.weight.data.zero_()
    compact(nn.Sequential(nn.Flatten(), first, second).eval(), (2, 1, 1))
    assert first.weight.shape == (1, 2)


class Residual(nn.Module):
    """Two layers whose outputs are added."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = (nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False), nn.Linear(4, 2))

    def forward(self, images: Tensor) -> Tensor:
        first = self.a(images)
        return self.head((first + self.b(first)).mean((2, 3)))  # type: ignore[no-any-return]


def test_what_is_added_goes_together_or_not_at_all() -> None:
    """Channel 0 is silent in one summand, 1 in both, 2 is read by one of two readers."""
    model = Residual().eval()
    model.a.weight.data[[0, 1]] = 0
    model.b.weight.data[1] = 0
    model.b.weight.data[:, 2] = 0
    compact(model, (1, 2, 2))
    assert model.a.out_channels == model.b.out_channels == model.head.in_features == 3


def test_norms_over_channels_are_left_alone_and_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2)).eval()
    model[3].weight.data[:, 1] = 0
    found = compact(model, (2, 1, 1))
    assert found.layers == {}
    assert found.left_alone == {"1": "2 (LayerNorm) may mix channels"}


class Normalised(nn.Module):
    """A network that divides its channels by their sum, without a module for it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1)).abs()
        return self.second(hidden / hidden.sum(1, keepdim=True))  # type: ignore[no-any-return]


class Standardised(nn.Conv2d):
    """A convolution whose zeros are no zeros: it multiplies by its weight less the mean."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.conv2d(images, self.weight - self.weight.mean(), self.bias)


def weight_norm() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (Standardised(4, 4, 1), "1 (Standardised) may use another weight than it holds"),
        (weight_norm(), "1 (ParametrizedConv2d) may use another weight than it holds"),
        (nn.GroupNorm(2, 4, affine=False), "1 (GroupNorm) may mix channels"),
        (nn.LayerNorm([4, 1, 1], elementwise_affine=False), "1 (LayerNorm) may mix channels"),
    ],
    ids=["its own forward", "a parametrization", "groups without parameters", "all without parameters"],
)
def test_what_may_not_lose_channels_is_left_alone_and_named(between: nn.Module, reason: str) -> None:
    """The channels before it stay, dead or not, and it computes the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), between, nn.Conv2d(4, 2, 1)).eval()
    model[0].weight.data[1] = 0
    model[2].weight.data[:, 2] = 0
    images = torch.randn(3, 3, 1, 1)
    before = model(images).detach()
    found = compact(model, (3, 1, 1))
    assert torch.allclose(model(images), before, atol=1e-6)
    assert model[0].weight.shape == (4, 3, 1, 1)
    assert found.left_alone["0"].startswith(reason)


class Heads(nn.Module):
    """Channels that go through a fixed number of heads, and a part that can lose some."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out, self.first, self.last = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, images: Tensor) -> Tensor:
        heads = self.value(images.flatten(1)).reshape(-1, 2, 2).softmax(1)
        return self.last(self.first(self.out(heads.reshape(-1, 4))).relu())  # type: ignore[no-any-return]


class Both(nn.Module):
    """Outputs that are read once more."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.more, self.last = nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        found = self.head(images.flatten(1))
        return found + self.last(self.more(found).relu())  # type: ignore[no-any-return]


class Multiplied(nn.Module):
    """A convolution of groups that gives two outputs for each input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.groups, self.last = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 12, 1, groups=6), nn.Conv2d(12, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.groups(self.first(images)).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "stays", "reason", "shrinks"),
    [
        (Heads, "value", "the network cannot run without one of them", "first"),
        (Both, "head", "they are the network's outputs", "more"),
        (Multiplied, "first", "groups has groups of channels", ""),
    ],
)
def test_what_stays_whole_is_found_before(kind: type[nn.Module], stays: str, reason: str, shrinks: str) -> None:
    """A channel that nobody reads stays where the network needs it, and goes elsewhere. It computes the same."""
    torch.manual_seed(0)
    model = kind().eval()
    for name, module in model.named_children():
        if name != "groups":
            module.weight.data[:, 1] = 0  # type: ignore[operator]
    images = torch.randn(3, 4, 1, 1)
    before, whole = model(images).detach(), model.get_parameter(f"{stays}.weight").shape
    found = compact(model, (4, 1, 1))
    torch.testing.assert_close(model(images).detach(), before)
    assert model.get_parameter(f"{stays}.weight").shape == whole
    assert found.left_alone.get(stays, reason) == reason
    assert not shrinks or len(model.get_parameter(f"{shrinks}.weight")) < len(kind().get_parameter(f"{shrinks}.weight"))


def test_a_network_for_one_image_alone_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(0), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(UserError, match=r"^the network cannot take two images \(.*\): it cannot be made compact$"):
        compact(model.eval(), (4, 1, 1))


def test_a_convolution_that_pads_by_itself_takes_no_constants() -> None:
    import_torchvision()
    layers = pytest.importorskip("timm.layers")
    norm, reader = nn.BatchNorm2d(2), layers.create_conv2d(2, 1, 3, stride=2, padding="same")
    assert type(reader).__name__ == "Conv2dSame" and reader.padding == (0, 0)
    norm.bias.data[:] = torch.tensor([1.0, 4.0])
    writer = nn.Conv2d(1, 2, 1, bias=False)
    writer.weight.data[1] = 0
    model = nn.Sequential(writer, norm, nn.ReLU(), reader).eval()
    images = torch.randn(2, 1, 6, 6)
    before = model(images).detach()
    compact(model, (1, 6, 6))
    torch.testing.assert_close(model(images).detach(), before)
    assert reader.in_channels == 2


def test_a_network_that_would_compute_something_else_is_refused() -> None:
    model = Normalised().eval()
    model.second.weight.data[:, 1] = 0
    model.second.weight.data *= 1e-3  # Small outputs, too.
    model.second.bias.data.zero_()
    with pytest.raises(UserError, match=r"^the compact network differs by .* in an output: it cannot be made compact$"):
        compact(model, (2, 1, 1))


def damaged(name: str, size: int) -> nn.Module:
    """A network of torchvision, norms at random values, a third of the rows and columns of each weight zeros."""
    import_torchvision()
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(name, num_classes=10).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
        if hasattr(module, "layer_scale"):  # 1e-6: else a fault in its branch would not show.
            nn.init.ones_(module.layer_scale)
        if isinstance(module, nn.Conv2d | nn.Linear):
            rows, columns = (torch.rand(length) < 0.3 for length in module.weight.shape[:2])
            module.weight.data[rows if len(rows) > 10 else []] = 0
            module.weight.data[:, columns if len(columns) > 3 else []] = 0
    return model


@pytest.mark.parametrize(
    ("name", "size", "least"),
    [
        ("resnet18", 32, 0.4),
        ("mobilenet_v3_small", 64, 0.5),
        ("convnext_tiny", 32, 0.4),
        pytest.param("efficientnet_b0", 64, 0.25, marks=pytest.mark.slow),
        pytest.param("resnet50", 64, 0.5, marks=pytest.mark.slow),
        pytest.param("densenet121", 64, 0.5, marks=pytest.mark.slow),
        pytest.param("vgg11_bn", 64, 0.5, marks=pytest.mark.slow),
        pytest.param("regnet_y_400mf", 64, 0.05, marks=pytest.mark.slow),
        pytest.param("vit_b_16", 224, 0.3, marks=pytest.mark.slow),
    ],
)
def test_networks_of_torchvision_compute_the_same(name: str, size: int, least: float) -> None:
    """Images are others than those it was made compact with. At least this share of the parameters goes."""
    model = damaged(name, size)
    before, images = copy.deepcopy(model), torch.randn(3, 3, size, size)
    found = compact(model, (3, size, size))
    sizes = [sum(parameter.numel() for parameter in one.parameters()) for one in (before, model)]
    assert sizes[1] <= (1 - least) * sizes[0]
    with torch.no_grad():
        torch.testing.assert_close(model(images), before(images), atol=1e-5, rtol=1e-4)
    assert all("mix channels" in reason or "groups" in reason for reason in found.left_alone.values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("swin_t", 64), ("shufflenet_v2_x0_5", 64)])
def test_networks_that_cannot_be_followed(name: str, size: int) -> None:
    model = damaged(name, size).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"^torch-pruning cannot follow the network \(.*\); it cannot be made compact$"):
        compact(model, (3, size, size))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(
        UserError,
        match=r"needs torch_pruning, which is not installed; pip install .* '\.\[export\]'",
    ):
        groups.pruning_library()
