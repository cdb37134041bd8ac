"""Most memory that work on masks takes beside what is kept, on a GPU's ways: counted on the CPU, without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from benchmarks.parts.kept_memory import tensors_of
from benchmarks.parts.live_memory import Live, as_on_gpu
from dynsparse.distributed.digest import mask_rows, weight_rows
from dynsparse.masks import LayerSpec, MaskSet, sparse_layers
from dynsparse.masks.magnitude import largest_units
from dynsparse.methods import AnyMethod, Clock
from dynsparse.reallocation import Reallocator
from dynsparse.training.precision import all_finite

EVENTS: Mapping[str, Mapping[str, Any]] = {
    "set": {"name": "set", "period": 1},
    "dsr": {"name": "dsr", "period": 1, "initial_threshold": 0.01},
    "rigl": {"name": "rigl", "period": 1},
    "rigl global": {"name": "rigl", "period": 1, "scope": "global"},
}
Work = Callable[[], object]


def vision_transformer(blocks: int, width: int = 1024) -> nn.Module:
    """Linear layers of the shapes of ViT-L/16, with so many of its 24 blocks."""
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * blocks
    layers = [nn.Linear(inputs, outputs, bias=False) for outputs, inputs in [*shapes, (1000, width)]]
    return nn.Sequential(nn.Conv2d(3, width, 16, bias=False), *layers)


def of_network(model: nn.Module, density: float) -> dict[str, int]:
    """Extra bytes of each kind of work on a network's masks."""
    specs = sparse_layers(model)
    counts = {spec.name: max(1, round(density * spec.units)) for spec in specs}
    values = dict(model.named_parameters())
    found = {}
    with torch.no_grad(), as_on_gpu():
        found["first masks, by magnitude"] = _extra(
            lambda: MaskSet(model, specs, largest_units(specs, counts, values), apply=False), model
        )
        found["first masks, at random"] = _extra(lambda: MaskSet(model, specs, counts, apply=False), model)
        for name, options in EVENTS.items():
            found[f"event of {name}"] = _of_event(model, specs, counts, options)
        masks = MaskSet(model, specs, counts)
        mask_rows(masks)  # The first makes tables of 4 MB, which stay.
        found["digest of masks"] = _extra(lambda: mask_rows(masks), model, masks)
        found["digest of weights"] = _extra(lambda: weight_rows(model, masks), model, masks)
        gradients = [one.grad for one in model.parameters() if one.grad is not None]
        found["finite gradients"] = _extra(lambda: all_finite(gradients), model)
    return found


def kept(model: nn.Module, density: float) -> int:
    """Bytes that masks keep beside the network's own, once gradients were masked and digests made."""
    specs = sparse_layers(model)
    with torch.no_grad(), as_on_gpu():
        masks = MaskSet(model, specs, {spec.name: max(1, round(density * spec.units)) for spec in specs})
        for one in model.parameters():
            one.grad = torch.zeros_like(one)
        masks.mask_gradients()
        mask_rows(masks)
        weight_rows(model, masks)
    own = {one.untyped_storage().data_ptr() for one in model.parameters()}
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors_of([masks])}
    return sum(count for place, count in storages.items() if place not in own)


def _of_event(
    model: nn.Module, specs: Sequence[LayerSpec], counts: Mapping[str, int], options: Mapping[str, Any]
) -> int:
    """Extra bytes from before the gradients are masked until weights have moved, without digests."""
    for one in model.parameters():
        one.copy_(torch.randn_like(one))
        one.grad = torch.randn_like(one)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for one in model.parameters():
        optimizer.state[one]["momentum_buffer"] = torch.zeros_like(one)
    masks = MaskSet(model, specs, counts)
    method = TypeAdapter(AnyMethod).validate_python(options).build()
    method.prepare(masks)
    masks.mask_gradients()  # The inactive weights' flags are there from the first step on.
    for one in model.parameters():
        one.grad = torch.randn_like(one)
    reallocator, clock = Reallocator(model, masks, method, optimizer), Clock(1, 0, steps_per_epoch=1, epochs=4)
    momenta = [one["momentum_buffer"] for one in optimizer.state.values()]
    found = _extra(
        lambda: reallocator.after_step(clock, reallocator.before_step(clock)), model, masks, method, *momenta
    )
    masks.check_budget()
    return found


def _extra(work: Work, model: nn.Module, *held: object) -> int:
    """Most bytes of tensors beside those of the model, of what is held, and of what the work returns."""
    own = [*model.parameters(), *model.buffers()]
    grads = [one.grad for one in own if one.grad is not None]
    with Live([*own, *grads, *tensors_of(held)]) as live:
        result = work()
        extra = int(live.extra)
        del result
    return extra
