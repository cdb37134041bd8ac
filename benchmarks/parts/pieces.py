"""Most memory that work on masks takes beside what is kept, on a GPU's ways: counted on the CPU, without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from benchmarks.parts.kept_memory import tensors_of
from benchmarks.parts.live_memory import Live, as_on_gpu
from dynsparse.distributed.digest import mask_rows, weight_rows
from dynsparse.masks import LayerSpec, MaskSet, sparse_layers
from dynsparse.masks.magnitude import largest_units
from dynsparse.masks.parted import each
from dynsparse.masks.structure import fitted, n_of_m
from dynsparse.methods import AnyMethod, Clock, Method
from dynsparse.methods.base import Aim
from dynsparse.reallocation import Reallocator
from dynsparse.reallocation.seen import drop_scores
from dynsparse.training.precision import all_finite

EVENTS: Mapping[str, Mapping[str, Any]] = {
    "set": {"name": "set", "period": 1},
    "deepr": {"name": "deepr"},
    "dsr": {"name": "dsr", "period": 1, "initial_threshold": 0.01},
    "rigl": {"name": "rigl", "period": 1},
    "rigl global": {"name": "rigl", "period": 1, "scope": "global"},
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    **EVENTS,
    "chase": {"name": "chase", "period": 1, "channel_sparsity": 0},
    "chts": {"name": "chts", "period": 1},
    "granet": {"name": "granet", "period": 1, "density": {"name": "cubic", "start": 0.9}},
    "mest": {"name": "mest", "period": 1},
    "nm": {"name": "nm", "period": 1},
    "nm by gradient": {"name": "nm", "period": 1, "criterion": "gradient"},
    "rigl, drawn softly": {"name": "rigl", "period": 1, "soft_drop": 2, "soft_growth": 2},
    "sparse momentum": {"name": "sparse_momentum"},
    "srigl": {"name": "srigl", "period": 1},
    "topkast": {"name": "topkast", "period": 1},
}
"""Events of each kind that moves weights, for masks of a tenth of all."""
STRUCTURES = {"nm": "2:4", "srigl": "fan_in"}
Work = Callable[[], object]


def language_model(blocks: int, width: int = 4096, hidden: int = 11008, words: int = 32000) -> nn.Module:
    """Linear layers of the shapes of a language model, on `meta`: 32 blocks have 7 billion weights."""
    shapes = [*[(width, width)] * 4, (hidden, width), (hidden, width), (width, hidden)] * blocks
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(i, o, bias=False) for o, i in [*shapes, (words, width)]))


def vision_transformer(blocks: int, width: int = 1024) -> nn.Module:
    """Linear layers of the shapes of ViT-L/16, with so many of its 24 blocks."""
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * blocks
    layers = [nn.Linear(inputs, outputs, bias=False) for outputs, inputs in [*shapes, (1000, width)]]
    return nn.Sequential(nn.Conv2d(3, width, 16, bias=False), *layers)


def vgg16() -> nn.Module:
    """Layers of the shapes of VGG-16's, the largest of which has 103 million weights."""
    widths = (3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6)
    shapes = [(25088, 4096), (4096, 4096), (4096, 1000)]
    convolutions = [nn.Conv2d(i, o, 3, bias=False) for i, o in pairwise(widths)]
    return nn.Sequential(*convolutions, *(nn.Linear(i, o, bias=False) for i, o in shapes))


def of_network(model: nn.Module, density: float, only: Collection[str] = ()) -> dict[str, int]:
    """Extra bytes of each kind of work on a network's masks, or of the kinds in `only`."""
    specs = sparse_layers(model)
    counts = {spec.name: max(1, round(density * spec.units)) for spec in specs}
    with torch.no_grad(), as_on_gpu():
        return {kind: work() for kind, work in _works(model, specs, counts).items() if not only or kind in only}


def _works(model: nn.Module, specs: Sequence[LayerSpec], counts: Mapping[str, int]) -> Mapping[str, Callable[[], int]]:
    values = dict(model.named_parameters())

    def by_magnitude() -> int:
        units = largest_units(specs, counts, values)  # Chosen in the host's memory.
        return _extra(lambda: MaskSet(model, specs, units, apply=False), model)

    def of_digest(rows: Callable[[MaskSet], object]) -> int:
        masks = MaskSet(model, specs, counts)
        mask_rows(masks)  # The first makes tables of 4 MB, which stay.
        return _extra(lambda: rows(masks), model, masks)

    gradients = [torch.zeros_like(one) for one in values.values()]
    return {
        "first masks, by magnitude": by_magnitude,
        "first masks, at random": lambda: _extra(lambda: MaskSet(model, specs, counts, apply=False), model),
        **{f"event of {name}": partial(_of_event, model, specs, counts, options) for name, options in EVENTS.items()},
        "noise of deepr, each step": lambda: _of_noise(model, specs, counts),
        "digest of masks": lambda: of_digest(mask_rows),
        "digest of weights": lambda: of_digest(lambda masks: weight_rows(model, masks)),
        "finite gradients": lambda: _extra(lambda: all_finite(gradients), model, gradients),
    }


def of_method(model: nn.Module, density: float, name: str) -> int:
    """Extra bytes of one method's event, at a density; N:M has that of its pattern."""
    options = METHODS[name]
    structure = STRUCTURES.get(options["name"], "free")
    specs = sparse_layers(model, structure=structure)
    if structure != "free":  # Of inputs in groups, which the first convolution has not.
        specs = [spec for spec in specs if spec.shape[1] % 4 == 0]
    pattern = n_of_m(structure)
    share = density if pattern is None else pattern[0] / pattern[1]
    counts = {spec.name: fitted(spec, max(1, round(share * spec.units))) for spec in specs}
    with torch.no_grad(), as_on_gpu():
        return _of_event(model, specs, counts, options)


def without_values(model: nn.Module, density: float) -> dict[str, int]:
    """Extra bytes of work whose tensors have sizes that follow from the masks' alone: for a network on `meta`.

    What is chosen by values, such as the units that move, cannot be found there.
    """
    with torch.no_grad(), as_on_gpu():
        masks = masked(model, density)
        found = {"kept": _kept(model, masks)}
        found["digest of masks"] = _extra(lambda: mask_rows(masks), model, masks)
        found["digest of weights"] = _extra(lambda: weight_rows(model, masks), model, masks)
        found["masking gradients"] = _extra(masks.mask_gradients, model, masks)
        gradients = [one.grad for one in model.parameters() if one.grad is not None]
        found["finite gradients"] = _extra(lambda: all_finite(gradients), model)
        rigl = Reallocator(model, masks, _method(EVENTS["rigl"]))
        clock = Clock(1, 0, steps_per_epoch=1, epochs=4)
        found["growth scores of rigl"] = _extra(lambda: rigl.look(clock, masks), model, masks, all_of=True)
        deepr = _method(EVENTS["deepr"])
        deepr.prepare(masks)
        found["drop scores of deepr, of all layers in turn"] = _extra(
            lambda: [one.numel() for layer in masks for one in each(drop_scores(deepr, layer))], model, masks, deepr
        )
        found["noise of deepr, each step"] = _extra(lambda: deepr.after_step(masks, clock, 0), model, masks, deepr)
    return found


def kept(model: nn.Module, density: float) -> int:
    """Bytes that masks keep beside the network's own, once gradients were masked and digests made."""
    with torch.no_grad(), as_on_gpu():
        return _kept(model, masked(model, density))


def masked(model: nn.Module, density: float) -> MaskSet:
    """Make masks of a model, at random; on `meta`, where nothing can be drawn, of so many units."""
    specs = sparse_layers(model)
    counts = {spec.name: max(1, round(density * spec.units)) for spec in specs}
    on_meta = next(model.parameters()).is_meta
    units: dict[str, Any] = {
        name: torch.empty(count, dtype=torch.int64, device="meta") if on_meta else count
        for name, count in counts.items()
    }
    return MaskSet(model, specs, units)


def _kept(model: nn.Module, masks: MaskSet) -> int:
    for one in model.parameters():
        one.grad = torch.zeros_like(one)
    masks.mask_gradients()
    mask_rows(masks)
    weight_rows(model, masks)
    own = {one.untyped_storage()._cdata for one in model.parameters()}
    storages = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors_of([masks])}
    return sum(count for place, count in storages.items() if place not in own)


def _method(options: Mapping[str, Any]) -> Method:
    settings = TypeAdapter(AnyMethod).validate_python(options)
    return settings.knowing(Aim({"conv": 0.9, "fc": 0.9})).build()


def _of_noise(model: nn.Module, specs: Sequence[LayerSpec], counts: Mapping[str, int]) -> int:
    """Extra bytes of DeepR's noise, which comes after each step."""
    masks, method = MaskSet(model, specs, counts), _method(EVENTS["deepr"])
    method.prepare(masks)
    clock = Clock(1, 0, steps_per_epoch=1, epochs=4)
    return _extra(lambda: method.after_step(masks, clock, 0), model, masks, method)


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
    method = _method(options)
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


def _extra(work: Work, model: nn.Module, *held: object, all_of: bool = False) -> int:
    """Most bytes of tensors beside those of the model, of what is held, and of what the work leaves.

    With `all_of` what it leaves counts too.
    """
    own = [*model.parameters(), *model.buffers()]
    grads = [one.grad for one in own if one.grad is not None]
    with Live([*own, *grads, *tensors_of(held)]) as live:
        result = work()
        extra = live.most - live.before if all_of else live.extra
        del result
    return int(extra)
