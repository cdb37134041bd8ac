"""Part of `benchmarks.gpu`: 2:4 layers by semi-structured kernels against dense ones."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.parts.gpu.bench import Bench, Found
from dynsparse.masks.candidates import sparse_layers
from dynsparse.masks.structure import drawn
from dynsparse.methods.nm import NmSettings
from dynsparse.sparse_kernels.choosing import Layer, cuda_seconds, seconds_of
from dynsparse.sparse_kernels.modules import adopt, compressed
from dynsparse.sparse_kernels.operands import OnGpu, Operand, Reference

TOLERANCE = 0.02
"""Relative to the largest output: bfloat16, in another order."""


class Shape(NamedTuple):
    """A layer and a batch of its inputs."""

    title: str
    layer: Layer
    inputs: tuple[int, ...]


def shapes(bench: Bench) -> list[Shape]:
    """List layers of ViT-S and ViT-L, and of ResNet-50, with the inputs that a batch of images gives them."""
    if bench.tiny:
        return [
            Shape("linear, 64 to 32", nn.Linear(64, 32), (8, 64)),
            Shape("1x1 convolution, 64 to 64", nn.Conv2d(64, 64, 1), (2, 64, 4, 4)),
        ]
    return [
        Shape("linear, 384 to 1536, 128 x 197 tokens", nn.Linear(384, 1536), (128, 197, 384)),
        Shape("linear, 1024 to 4096, 32 x 197 tokens", nn.Linear(1024, 4096), (32, 197, 1024)),
        Shape("linear, 4096 to 4096, 8192 rows", nn.Linear(4096, 4096), (8192, 4096)),
        Shape(
            "1x1 convolution, 256 to 1024, 14 px, batch 256", nn.Conv2d(256, 1024, 1, bias=False), (256, 256, 14, 14)
        ),
        Shape("1x1 convolution, 2048 to 512, 7 px, 256", nn.Conv2d(2048, 512, 1, bias=False), (256, 2048, 7, 7)),
    ]


def semi_structured(bench: Bench, found: Found) -> None:
    """Time each layer dense and 2:4, in inference and in a training step, and compare outputs and gradients."""
    operand: type[Operand] = OnGpu if bench.on_gpu else Reference
    timer = cuda_seconds if bench.on_gpu else _once
    for shape in shapes(bench):
        torch.manual_seed(0)
        layer = _pruned(shape.layer).to(bench.device, torch.bfloat16)
        inputs = torch.randn(shape.inputs, device=bench.device, dtype=torch.bfloat16)
        if inputs.dim() == 4:
            layer, inputs = layer.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        found.check(f"{shape.title}: outputs and gradients are the dense ones", _agrees(layer, inputs, operand))
        figures = found.figures.setdefault(shape.title, {})
        for title, training in (("inference", False), ("training", True)):
            dense, sparse = seconds_of(layer, inputs, operand, timer, training=training)
            figures[title] = {"dense": dense, "2:4": sparse}
            found.target(f"{shape.title}: {title}, 2:4 over dense", sparse / dense, 1.0)


def _pruned(layer: Layer) -> Layer:
    """Leave a transposable 2:4 pattern of a layer's weights, drawn at random."""
    (spec,) = sparse_layers(layer, structure=NmSettings(name="nm", transposable=True).pattern("2:4"))
    keep = torch.zeros(spec.units, dtype=torch.bool).index_fill_(0, drawn(spec, spec.units // 2, seed=1), True)
    with torch.no_grad():
        layer.weight.mul_(keep.view(layer.weight.shape))
    return layer


def _agrees(layer: Layer, inputs: Tensor, operand: type[Operand]) -> bool:
    ours = copy.deepcopy(layer)
    adopt(ours, operand)
    wholes = [_results(one, inputs) for one in (layer, ours)]
    with torch.no_grad():
        wholes[1].append(compressed(layer, operand)(inputs))
    wholes[0].append(wholes[0][0])
    return all(
        float((a - b).detach().abs().max()) <= TOLERANCE * float(a.detach().abs().max())
        for a, b in zip(*wholes, strict=True)
    )


def _results(layer: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Outputs, and gradients of the inputs and the parameters."""
    given = inputs.detach().requires_grad_()
    out = layer(given)
    return [out, *torch.autograd.grad(out, [given, *layer.parameters()], torch.ones_like(out))]


def _once(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
