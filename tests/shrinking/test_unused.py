"""Channels that a network in training can do without: by hand, and in networks whose channels are added or joined."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from dynsparse.masks import MaskSet, sparse_layers
from dynsparse.masks.rows import by_parameter, whole_mask
from dynsparse.shrinking.groups import Graph
from dynsparse.shrinking.kept import Kept, Shrinkage
from dynsparse.shrinking.shrunk_masks import shrunk_masks
from dynsparse.shrinking.unused import Unused, unused_channels
from pipelines.common.torchvision_ops import import_torchvision


def found(models: Sequence[nn.Module], links: Mapping[str, Tensor], *shape: int) -> Unused:
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    groups = list(Graph(copy.deepcopy(models[0]).eval(), images))
    return unused_channels(groups, [copy.deepcopy(model) for model in models], links, images)


def plain(kept: Kept) -> tuple[list[int] | None, list[int] | None]:
    return tuple(None if at is None else at.tolist() for at in (kept.outputs, kept.inputs))  # type: ignore[return-value]


def links(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias, dtype=torch.float32)
    return layer


def test_by_hand() -> None:
    """Neuron 0 works. Nobody reads 1. 2 is relu(3) for every image, 3 is relu(-1). 4 has grown, at the value 0."""
    first = linear([[1.0, 2], [5, 6], [0, 0], [0, 0], [0, 0]], [0.5, 7, 3, -1, 2])
    second = linear([[1.0, 0, 2, 9, 4], [4, 0, -1, 9, 4]], [10, 20])
    masks = {"1": links([[1, 1], [1, 1], [0, 0], [0, 0], [0, 1]]), "3": links([[1, 0, 1, 1, 1], [1, 0, 1, 1, 1]])}
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)
    unused = found([model], masks, 2, 1, 1)
    assert {name: plain(kept) for name, kept in unused.modules.items()} == {"1": ([0, 4], None), "3": (None, [0, 4])}
    assert {name: value.tolist() for name, value in unused.biases[0].items()} == {"3": [10 + 2 * 3, 20 - 1 * 3]}


def test_a_weight_that_has_just_grown_reads() -> None:
    """Weights of 0 are active here: the masks decide."""
    first, second = linear([[1.0], [1]], [0, 0]), linear([[1.0, 0]], [0])
    model = nn.Sequential(nn.Flatten(), first, second)
    assert not found([model], {"2": links([[1, 1]])}, 1, 1, 1).modules
    assert plain(found([model], {"2": links([[1, 0]])}, 1, 1, 1).modules["1"]) == ([0], None)


def test_a_norm_without_parameters_and_a_depthwise_convolution_follow() -> None:
    """Nobody reads channels 1 to 3. The depthwise convolution keeps two: with one it would be an ordinary one."""
    first, depthwise, last = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 2, 1)
    model = nn.Sequential(first, nn.BatchNorm2d(4, affine=False), depthwise, nn.ReLU(), last)
    with torch.no_grad():
        last.weight[:, 1:] = 0
    unused = found([model], {"4": links([[1, 0, 0, 0], [1, 0, 0, 0]])}, 1, 6, 6)
    assert {name: plain(kept) for name, kept in unused.modules.items()} == {
        "0": ([0, 1], None),
        "1": ([0, 1], None),
        "2": ([0, 1], None),
        "4": (None, [0, 1]),
    }
    images = torch.randn(2, 1, 6, 6)
    before = model.eval()(images)
    Shrinkage(0, unused.modules).apply(model)
    torch.testing.assert_close(model(images), before)
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (2, 2, 2)


def test_a_channel_goes_where_the_average_can_do_without_it_too() -> None:
    """Nobody writes neuron 1. The model has relu(-1) there, its average relu(1), and their reader has no bias."""
    first, reader = linear([[1.0], [0]], [0, -1]), nn.Linear(2, 1, bias=False)
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), reader)
    average = copy.deepcopy(model)
    masks = {"1": links([[1], [0]])}
    assert plain(found([model, average], masks, 1, 1, 1).modules["1"]) == ([0], None)
    average[1].bias.data[1] = 1  # type: ignore[union-attr, index]
    assert not found([model, average], masks, 1, 1, 1).modules


def test_each_takes_its_own_number() -> None:
    model = nn.Sequential(nn.Flatten(), linear([[1.0], [0]], [0, 2]), nn.ReLU(), linear([[1.0, 3]], [5]))
    average = copy.deepcopy(model)
    average[1].bias.data[1] = 1  # type: ignore[union-attr, index]
    unused = found([model, average], {"1": links([[1], [0]])}, 1, 1, 1)
    assert [biases["3"].tolist() for biases in unused.biases] == [[5 + 3 * 2], [5 + 3 * 1]]


@pytest.mark.parametrize(("shift", "running_mean", "goes"), [(-1.0, 0.5, True), (1.0, 0.0, True), (1.0, 0.5, False)])
def test_what_differs_between_training_and_evaluation_stays(shift: float, running_mean: float, goes: bool) -> None:
    """A filter without weights is relu(shift) in training, and relu(shift - mean / sqrt(variance)) in evaluation."""
    writer, norm, reader = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)
    writer.weight.data[1] = 0
    norm.bias.data[1], norm.running_mean[1] = shift, running_mean  # type: ignore[index]
    model = nn.Sequential(writer, norm, nn.ReLU(), reader)
    unused = found([model], {"0": links([[1], [0]])}, 1, 4, 4)
    assert bool(unused.modules) == goes
    assert norm.running_mean.tolist() == [0, running_mean]  # type: ignore[union-attr]


class Added(nn.Module):
    """A residual block, a depthwise convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = (
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in ((3, 8), (8, 6), (6, 8))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (8, 6, 8, 8))
        self.depthwise, self.head = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        first = self.norms[0](self.stem(images)).relu()
        second = first + self.norms[2](self.outer(self.norms[1](self.inner(first)).relu()))
        return self.head(self.norms[3](self.depthwise(second.relu())).relu().mean((2, 3)))  # type: ignore[no-any-return]


class Joined(nn.Module):
    """Channels that are joined one after the other, as DenseNet's, and a norm over them that may not be split."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3, padding=1), nn.Conv2d(9, 6, 1)
        self.norm, self.layer_norm, self.last, self.head = (
            nn.BatchNorm2d(9),
            nn.LayerNorm(6),
            nn.Linear(6, 7),
            nn.Linear(7, 2),
        )

    def forward(self, images: Tensor) -> Tensor:
        first = self.a(images)
        joined = self.norm(torch.cat([first, self.b(first.relu())], 1)).relu()
        return self.head(self.last(self.layer_norm(self.c(joined).mean((2, 3)))).relu())  # type: ignore[no-any-return]


def masked(model: nn.Module, density: float, seed: int) -> MaskSet:
    """Masks in which a third of the inputs of each layer are read by nobody, and the norms hold random numbers."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, generator=generator)
            nn.init.normal_(module.running_mean, generator=generator)  # type: ignore[arg-type]
    specs = sparse_layers(model)
    units = {}
    for spec in specs:
        flags = torch.rand(spec.shape, generator=generator) < density
        flags[:, torch.rand(spec.shape[1], generator=generator) < 0.34 if spec.shape[1] > 3 else []] = False
        flags.view(-1)[0] = True
        units[spec.name] = flags.flatten().nonzero().flatten()
    return MaskSet(model, specs, units)


def shrunk(model: nn.Module, masks: MaskSet, *shape: int) -> MaskSet:
    """Shrink a model, in place. Returns its masks."""
    weights = dict(model.named_parameters())
    groups = {name: whole_mask(weights[name], layers) for name, layers in by_parameter(masks).items()}
    joined = {name.rpartition(".")[0]: (m.flatten(2).any(2) if m.dim() > 2 else m) for name, m in groups.items()}
    unused = found([model], joined, *shape)
    with torch.no_grad():
        for name, value in unused.biases[0].items():
            model.get_submodule(name).get_parameter("bias").copy_(value)
    shrinkage = Shrinkage(1, unused.modules)
    shrinkage.apply(model)
    return shrunk_masks(masks, model, shrinkage, seed=5).masks


def assert_same_after_a_shrink(model: nn.Module, size: int, least: float) -> None:
    """The outputs and the budget stay, and at least this share of the parameters goes."""
    masks = masked(model, 0.25, 0)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    parameters = sum(one.numel() for one in model.parameters())
    before = model.eval()(images).detach()
    after = shrunk(model, masks, 3, size, size)
    largest = float(before.abs().max())
    torch.testing.assert_close(model.eval()(images).detach(), before, atol=1e-5 * largest, rtol=1e-4)
    assert sum(one.numel() for one in model.parameters()) <= (1 - least) * parameters
    assert after.budget == masks.budget == after.active_weights
    after.check()


@pytest.mark.parametrize(("model", "least"), [(Added, 0.2), (Joined, 0.15)])
def test_networks_that_add_and_join_channels(model: type[nn.Module], least: float) -> None:
    torch.manual_seed(0)
    assert_same_after_a_shrink(model(), 8, least)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "least"),
    [("resnet18", 32, 0.3), ("mobilenet_v3_small", 64, 0.2), ("densenet121", 32, 0.3), ("convnext_tiny", 32, 0.2)],
)
def test_networks_of_torchvision(name: str, size: int, least: float) -> None:
    import_torchvision()
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(name, num_classes=10)
    for module in model.modules():
        if hasattr(module, "layer_scale"):  # 1e-6: else a fault in its branch would not show.
            torch.nn.init.ones_(module.layer_scale)
    assert_same_after_a_shrink(model, size, least)
