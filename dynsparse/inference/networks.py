"""Networks that compute what a dense one does, in ways that may be faster."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from dynsparse.errors import UserError
from dynsparse.inference.engines import TORCH, made
from dynsparse.inference.layers import COMPACT, CSR, Layers, timed_layers
from dynsparse.inference.table import DENSE
from dynsparse.shrinking import compact

CHANNELS_LAST = "channels_last"
LEAST_CONVOLUTIONS = 2
"""Convolutions from which on another memory order is tried: a transformer has one, for its patches."""


@dataclass(frozen=True)
class Network:
    """A candidate, or the reason why there is none."""

    name: str
    module: nn.Module | None = None
    layers: Layers | None = None
    """Figures of its layers."""
    note: str = ""


class ChannelsLast(nn.Module):
    """A network whose images and activations lie in memory pixel by pixel, and not channel by channel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network gives."""
        return self.network(images.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]


def networks(dense: nn.Module, example: Tensor, through: str, rounds: int) -> Iterator[Network]:
    """Yield the candidates beside the dense network. Raises UserError where `through` cannot run the network at all."""
    smaller = without_dead(dense, example)
    if through == TORCH:
        yield from _in_torch(dense, smaller, example, rounds)
        return
    yield Network(f"{DENSE}, {through}", made(through, dense, example))
    if smaller.module is None:
        yield smaller
        return
    try:
        yield Network(f"{COMPACT}, {through}", made(through, smaller.module, example))
    except UserError as error:
        yield Network(f"{COMPACT}, {through}", note=error.lines[0])


def without_dead(dense: nn.Module, example: Tensor) -> Network:
    """Return the network without the channels that do nothing, or a note where that is not possible."""
    if example.dim() != 4:
        return Network(COMPACT, note="not tried: the input is no batch of images")
    if next(dense.parameters(), None) is None:
        return Network(COMPACT, note="not tried: the network has no parameters")
    module = copy.deepcopy(dense).cpu()
    channels, height, width = example.shape[1:]
    try:
        found = compact(module, (channels, height, width))
    except UserError as error:
        return Network(COMPACT, note=error.lines[0])
    if not found.layers:
        return Network(COMPACT, note="no channel does nothing")
    return Network(COMPACT, module.to(example.device).requires_grad_(False))


def _in_torch(dense: nn.Module, smaller: Network, example: Tensor, rounds: int) -> Iterator[Network]:
    yield smaller
    bases = {DENSE: dense} if smaller.module is None else {COMPACT: smaller.module, DENSE: dense}
    for name, base in bases.items():
        yield from _as_csr(dense, base, example, rounds, name)
    if example.dim() != 4 or sum(isinstance(one, nn.Conv2d) for one in dense.modules()) < LEAST_CONVOLUTIONS:
        return
    images = example.contiguous(memory_format=torch.channels_last)
    dense_last = _last(dense)
    for name, base in bases.items():
        base_last, name_last = dense_last if base is dense else _last(base), f"{name}, {CHANNELS_LAST}"
        yield Network(name_last, ChannelsLast(base_last))
        for found in _as_csr(dense_last, base_last, images, rounds, name_last):
            yield found if found.module is None else Network(found.name, ChannelsLast(found.module), found.layers)


def _as_csr(dense: nn.Module, base: nn.Module, example: Tensor, rounds: int, name: str) -> Iterator[Network]:
    """Yield the network with CSR in the layers that are faster so."""
    layers = timed_layers(dense, base, example, rounds)
    name = CSR if name == DENSE else f"{name}, {CSR}"
    if not layers.sparse:
        yield Network(name, layers=layers, note="no layer is clearly faster")
        return
    module = _sharing(base)
    for path, layer in layers.sparse.items():
        module.set_submodule(path, layer)
    yield Network(name, module, layers)


def _last(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _sharing(module: nn.Module) -> nn.Module:
    """Return a copy that has the same tensors, so that they take no more memory."""
    return copy.deepcopy(module, {id(one): one for one in chain(module.parameters(), module.buffers())})
