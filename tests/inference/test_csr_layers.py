"""Layers with CSR matrices give what the dense ones give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dynsparse.inference.csr_layers import RowMajorSparseLinear, SparseConv2d, sparse_layer
from tests.inference.small import thin

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs a torch with MKL")

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "stride": (1, 3), "bias": False},
    {"kernel_size": 1, "padding": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_convolutions(geometry: dict[str, Any], order: torch.memory_format) -> None:
    """Values and memory order are those of the dense layer."""
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, **geometry).to(memory_format=order)  # type: ignore[call-overload]
    thin(layer, 0.2)
    sparse = sparse_layer(layer)
    assert isinstance(sparse, SparseConv2d)
    for batch in (1, 3):
        x = torch.randn(batch, 6, 7, 9).contiguous(memory_format=order)
        y, expected = sparse(x), layer(x).detach()
        torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-5)
        assert y.is_contiguous(memory_format=order)


def test_linear_layers() -> None:
    """Outputs are row-major, as those of nn.Linear."""
    torch.manual_seed(0)
    layer = nn.Linear(9, 6)
    thin(layer, 0.3)
    layer.weight.data[2] = 0
    sparse = sparse_layer(layer)
    assert isinstance(sparse, RowMajorSparseLinear)
    for shape in ((9,), (1, 9), (4, 9), (2, 3, 9)):
        x = torch.randn(shape)
        torch.testing.assert_close(sparse(x), layer(x).detach())
        assert sparse(x).is_contiguous()


def test_the_layer_keeps_nothing_of_the_dense_one() -> None:
    layer = nn.Linear(4, 4)
    sparse, x = sparse_layer(layer), torch.randn(2, 4)
    assert sparse is not None
    before = sparse(x)
    layer.weight.data.zero_()
    layer.bias.data.fill_(7)
    assert torch.equal(sparse(x), before)


class Own(nn.Linear):
    """A linear layer whose class may do anything."""


def hooked() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda *_: None)
    return layer


def empty() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight.data.zero_()
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv1d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Linear(4, 4).double(),
        Own(4, 4),
        hooked(),
        empty(),
    ],
    ids=str,
)
def test_layers_that_stay_dense(layer: nn.Module) -> None:
    assert sparse_layer(layer) is None
