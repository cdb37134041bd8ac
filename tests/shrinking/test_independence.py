"""Constants are so for every image, or their channels stay: networks whose image reaches past all layers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.shrinking import compact
from dynsparse.shrinking.groups import Graph
from dynsparse.shrinking.independence import difference, outputs_of
from dynsparse.shrinking.unused import unused_channels
from tests.pretended_gpu import pretended_gpu
from tests.ranks import run_distributed

Mix = Callable[[Tensor, Tensor], Tensor]


class Mixed(nn.Module):
    """Two of eight channels have no weights; something is made of all of them and of the image."""

    def __init__(self, mix: Mix, bias: float = -4.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = mix
        self.a, self.c, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Linear(6, 5)
        with torch.no_grad():
            self.a.weight[[1, 3]] = 0
            self.a.bias[[1, 3]] = bias  # type: ignore[index]
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.c(self.mix(self.a(images), images)).relu().mean((2, 3)))  # type: ignore[no-any-return]


def added(channels: Tensor, images: Tensor) -> Tensor:
    """Add the image: relu(-4 + mean) is 0 for images of a small scale."""
    return (channels + images.mean(1, keepdim=True)).relu()


def gated(channels: Tensor, images: Tensor) -> Tensor:
    """Multiply by a gate that is 1 for images of a small scale."""
    return channels * nn.functional.hardsigmoid(5 + images.mean(1, keepdim=True))


def switched(channels: Tensor, images: Tensor) -> Tensor:
    """Lose NaN in a comparison."""
    return channels + torch.where(images.amax((1, 2, 3), keepdim=True) > 20, 1.0, 0.0)


def closed(channels: Tensor, images: Tensor) -> Tensor:
    """Gate what is 0 for silent channels: 0 it stays."""
    return channels.relu() * images.mean(1, keepdim=True).sigmoid()


def apart(channels: Tensor, images: Tensor) -> Tensor:
    """Use each channel alone."""
    return nn.functional.hardswish(channels + 1)


@pytest.mark.parametrize(
    ("mix", "left"), [(added, 8), (gated, 8), (switched, 8), (closed, 6), (apart, 6)], ids=lambda one: str(one)[:16]
)
def test_outputs_are_the_same_on_images_of_any_scale(mix: Mix, left: int) -> None:
    model = Mixed(mix)
    twin = copy.deepcopy(model)
    compact(model, (3, 8, 8))
    assert model.a.out_channels == left
    for scale in (0.0, 1.0, 3.0, 10.0, 30.0, 1e4):
        images = scale * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            torch.testing.assert_close(model(images), twin(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mix", "goes"), [(added, False), (gated, False), (switched, False), (closed, True)])
def test_a_shrink_in_training_proves_it_too(mix: Mix, goes: bool) -> None:
    model, images = Mixed(mix), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    groups = list(Graph(copy.deepcopy(model), images))
    links = {"a": (model.a.weight != 0).flatten(2).any(2)}
    unused = unused_channels(groups, [copy.deepcopy(model)], links, images)
    assert bool(unused.modules) == goes


def test_a_network_that_refuses_nan_keeps_what_may_be_constant() -> None:
    def strict(channels: Tensor, images: Tensor) -> Tensor:
        assert not images.isnan().any()
        return channels.relu()

    model = Mixed(strict)
    compact(model, (3, 8, 8))
    assert model.a.out_channels == 8


def test_outputs_are_compared_on_other_images_and_scales() -> None:
    """A network that differs for large images alone; NaN of a black image is no difference."""
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def outputs(limit: float) -> list[tuple[float, Tensor]]:
        net = nn.Hardtanh(-limit, limit)
        return outputs_of(net, images)

    assert difference(outputs(1e5), outputs(1e5)) == (0.0, False)
    assert difference(outputs(1e5), outputs(50))[1]
    shares = nn.Softmax(1), lambda x: x.abs() / x.abs().sum(1, keepdim=True)
    assert all(difference(outputs_of(one, images), outputs_of(one, images)) == (0.0, False) for one in shares)  # type: ignore[arg-type]


class Several(nn.Module):
    """A network whose outputs are of some kind."""

    def __init__(self, kind: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.kind, self.inner = kind, Mixed(apart)

    def forward(self, images: Tensor) -> object:
        return self.kind(self.inner(images))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (lambda x: (x, x), "gives a tuple where one tensor is needed"),
        (lambda x: {"out": x}, "gives a dict where one tensor is needed"),
        (lambda x: x / 0, "gives NaN or inf for random images"),
    ],
)
def test_outputs_that_cannot_be_compared_are_refused_before_any_change(
    kind: Callable[[Tensor], object], said: str
) -> None:
    model = Several(kind).eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=rf"^the network {said}: it cannot be made compact$"):
        compact(model, (3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def on_a_gpu(worker: Worker) -> None:
    with pretended_gpu() as device:
        here, there = Mixed(apart), Mixed(apart).to(device)
        compact(here, (3, 8, 8))
        compact(there, (3, 8, 8))
        assert there.a.weight.device.type == device.type
        assert there.a.out_channels == here.a.out_channels == 6
        for name, value in here.state_dict().items():
            torch.testing.assert_close(there.state_dict()[name].cpu(), value)


def test_a_network_on_a_gpu() -> None:
    run_distributed(on_a_gpu, 1)
