"""Layers of a network, each timed alone: dense, without dead channels, as a CSR matrix."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dynsparse.inference.csr_layers import sparse_layer
from dynsparse.inference.rounds import Act, Times, in_turn, ratio
from dynsparse.inference.table import DENSE, LayerRow
from dynsparse.recording import record_inputs

COMPACT, CSR = "compact", "CSR"
MARGIN = 0.1
"""Fraction by which CSR has to be faster for a layer to be replaced."""
MOST_DENSITY = 0.3
"""Density up to which CSR is tried: a layer that is denser would only cost time to measure (docs/results/csr.md)."""


@dataclass
class Layers:
    """Figures of the layers of a network, and those to replace."""

    rows: list[LayerRow] = field(default_factory=list)
    sparse: dict[str, nn.Module] = field(default_factory=dict)
    """Layers that are clearly faster as CSR, by name, to take the place of those in the network."""
    others: int = 0
    """Number of layers with no way but dense."""


def timed_layers(dense: nn.Module, smaller: nn.Module, images: Tensor, rounds: int) -> Layers:
    """Time the layers of `smaller`, which is `dense` itself or the same without dead channels, in evaluation mode.

    Only convolutions and linear layers whose `forward` is called count. `images` is one batch of the input.
    """
    found, inputs, smaller_inputs = Layers(), _inputs(dense, images), _inputs(smaller, images)
    for name, taken in smaller_inputs.items():
        before, layer = dense.get_submodule(name), smaller.get_submodule(name)
        ways: dict[str, Act] = {DENSE: _act(before, inputs[name])}
        if _weight(layer).shape != _weight(before).shape:
            ways[COMPACT] = _act(layer, taken)
        sparse = sparse_layer(layer) if _density(layer) <= MOST_DENSITY else None
        if sparse is not None:
            ways[CSR] = _act(sparse, taken)
        if len(ways) == 1:
            found.others += 1
            continue
        row = _row(name, before, ways, rounds)
        found.rows.append(row)
        if sparse is not None and row.chosen == CSR:
            found.sparse[name] = sparse
    return found


def _row(name: str, before: nn.Module, ways: Mapping[str, Act], rounds: int) -> LayerRow:
    """Time the ways. What CSR has to beat is the layer as it would run without it."""
    base = COMPACT if COMPACT in ways else DENSE
    with torch.no_grad():
        times = in_turn({base: ways[base], **ways}, rounds)
    wins = CSR in ways and ratio(times[CSR], times[base]).wins(MARGIN)
    ms = {way: 1000 * statistics.median(times[way]) for way in ways}
    shape = tuple(_weight(before).shape)
    chosen = CSR if wins else base
    return LayerRow(name, type(before).__name__, shape, _density(before), ms, _to_dense(times), chosen)


def _to_dense(times: Times) -> dict[str, float]:
    return {way: ratio(times[way], times[DENSE]).median for way in times}


def _act(layer: nn.Module, make: Callable[[], Tensor]) -> Act:
    x = make()
    return lambda: layer(x)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _density(layer: nn.Module) -> float:
    weight = _weight(layer)
    return int(weight.count_nonzero()) / max(1, weight.numel())


def _inputs(model: nn.Module, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return by layer how to make random inputs of the shape and memory order that it gets, in the order of the calls.

    A layer with a forward of its own, of whatever has wrapped it, is left out.
    """
    found: dict[str, Callable[[], Tensor]] = {}

    def keep(name: str, taken: Tensor) -> None:
        found[name] = _like(taken)

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    record_inputs(model, images, {name: one for name, one in layers.items() if "forward" not in one.__dict__}, keep)
    return found


def _like(x: Tensor) -> Callable[[], Tensor]:
    """Return a function that makes such a tensor, without keeping this one."""
    on_meta = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    device = x.device
    return lambda: torch.randn_like(on_meta, device=device)
