"""What must hold in a checkpoint, looked at in what is stored: before it is put together, which would hide it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from dynsparse.masks import SparseLayer
from dynsparse.masks.maskset import unpack_bits
from dynsparse.training.network import Network
from dynsparse.training.packing import buffers

State = Mapping[str, Any]


def problems(saved: State, network: Network) -> list[str]:
    """What is wrong with the parts of a run's checkpoint for this network, each named by its layer; [] if nothing."""
    sparse = {layer.name: layer for layer in network.masks}
    found = [
        *_same_names("masks", saved["masks"]["layers"], sparse),
        *_same_names("weights", saved["weights"], dict(network.model.named_parameters())),
        *_same_names("optimizer state", saved["optimizer"], dict(network.model.named_parameters())),
    ]
    if found:
        return found
    for name, parameter in network.model.named_parameters():
        if name in sparse:
            found += [f"{name}: {problem}" for problem in _of_layer(saved, sparse[name])]
        else:
            found += [f"{name}: {problem}" for problem in _of_whole(saved, name, parameter)]
    return [*found, *_of_budget(saved, network), *_of_buffers(saved, network.model), *_of_initial(saved, sparse)]


def _same_names(what: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    for name in [*ours, *theirs]:
        if (name in theirs) != (name in ours):
            yield f"{name}: {'has no' if name in ours else 'is not in the network of its config, but has'} {what}"


def _of_layer(saved: State, layer: SparseLayer) -> Iterator[str]:
    """Mask bits, stored values and moments of a sparse layer agree with each other and with its shape."""
    name, spec, mask = layer.name, layer.spec, saved["masks"]["layers"][layer.name]
    if (list(mask["shape"]), mask["mask_dims"]) != (list(spec.shape), spec.mask_dims):
        yield f"is {mask['shape']} in units of {mask['mask_dims']} dimensions in its mask, {list(spec.shape)} in units "
        f"of {spec.mask_dims} in the network"
        return
    if problem := _of_bits(mask["mask"], spec.units):
        yield f"its mask {problem}"
        return
    active = active_units(mask, spec.units)
    if active == 0:
        yield "its mask has no active unit"
    explored, inactive = ("explored", spec.units) if "explored" in mask else ("explored_inactive", spec.units - active)
    if problem := _of_bits(mask[explored], inactive):
        yield f"what it explored {problem}"
    values = {"weights": saved["weights"][name], **_moments(saved, name)}
    for what, value in values.items():
        if tuple(value.shape) != (active, spec.unit_size):
            yield f"{what}: {value.numel():,} values are stored, its mask has {active * spec.unit_size:,} active"
        yield from _not_finite(what, value)


def _of_whole(saved: State, name: str, parameter: Tensor) -> Iterator[str]:
    for what, value in {"weights": saved["weights"][name], **_moments(saved, name)}.items():
        if value.shape != parameter.shape:
            yield f"{what}: {list(value.shape)} is stored, the network has {list(parameter.shape)}"
        yield from _not_finite(what, value)


def _moments(saved: State, name: str) -> dict[str, Tensor]:
    """The tensors of the optimizer's state that have a value for each weight."""
    state = saved["optimizer"][name]
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.dim() > 0}


def active_units(mask: State, units: int) -> int:
    """How many bits of a stored mask are set."""
    return int(unpack_bits(mask["mask"], units).count_nonzero())


def _of_bits(packed: Tensor, flags: int) -> str | None:
    """Whether so many flags are packed there, and none beyond the last."""
    if packed.numel() != -(-flags // 8):
        return f"takes {packed.numel():,} bytes, {flags:,} bits take {-(-flags // 8):,}"
    beyond = unpack_bits(packed, 8 * packed.numel())[flags:]
    return f"has bits set beyond its last ({int(beyond.count_nonzero())})" if bool(beyond.any()) else None


def _not_finite(what: str, value: Tensor) -> Iterator[str]:
    if value.is_floating_point() and (wrong := int((~value.isfinite()).count_nonzero())):
        yield f"{what}: {wrong:,} of {value.numel():,} values are no finite numbers"


def _of_budget(saved: State, network: Network) -> Iterator[str]:
    """Met to within a unit of the largest size, as `MaskSet` has it."""
    layers, stored = list(network.masks), saved["masks"]["layers"]
    active = sum(active_units(stored[layer.name], layer.spec.units) * layer.spec.unit_size for layer in layers)
    if abs(active - saved["masks"]["budget"]) >= max((layer.spec.unit_size for layer in layers), default=1):
        yield f"masks: {active:,} weights are active, the budget is {saved['masks']['budget']:,}"


def _of_buffers(saved: State, model: nn.Module) -> Iterator[str]:
    """Every rank has the network's buffers."""
    ours = buffers(model)
    for rank, parts in enumerate(saved["ranks"]):
        yield from _same_names(f"buffers of rank {rank}", parts["buffers"], ours)
        for name in ours.keys() & parts["buffers"].keys():
            value = parts["buffers"][name]
            if value.shape != ours[name].shape:
                yield f"{name}: of rank {rank} is {list(value.shape)}, the network has {list(ours[name].shape)}"
            yield from (f"{name}: {problem}" for problem in _not_finite(f"of rank {rank}", value))


def _of_initial(saved: State, sparse: Mapping[str, SparseLayer]) -> Iterator[str]:
    """What a checkpoint of before the first step has beside: whole weights, as they were drawn."""
    for name, value in saved.get("initial_weights", {}).items():
        if name not in sparse or tuple(value.shape) != sparse[name].spec.shape:
            yield f"{name}: its initial weights {list(value.shape)} are of no such layer"
        yield from (f"{name}: {problem}" for problem in _not_finite("initial weights", value))
