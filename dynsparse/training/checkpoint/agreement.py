"""Checks that the parts of a checkpoint agree with each other. Nothing is built from it before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from torch import Tensor

from dynsparse.explain import kind_of
from dynsparse.methods import AnyMethod
from dynsparse.optimizers import STATE_KEYS
from dynsparse.training.checkpoint.format import State
from dynsparse.training.checkpoint.schema import SavedLayer, SavedRank, SavedRun

_METHOD: TypeAdapter[Any] = TypeAdapter(AnyMethod)


def first_problem(state: State) -> str | None:
    """Return what is wrong, with the key where it is; None if nothing is. Builds nothing."""
    try:
        saved = SavedRun.model_validate(state)
    except ValidationError as error:
        return _in_words(error.errors()[0])
    return next(_disagreements(saved, state), None)


def _in_words(details: ErrorDetails) -> str:
    key = ".".join(str(step) for step in details["loc"] if step not in ("SavedScale", "Tensor", "float"))
    match details["type"]:
        case "missing":
            return f"{key} is missing"
        case "is_instance_of":
            return f"{key} {kind_of(details['input'])}, not a tensor"
        case _:
            return f"{key} {kind_of(details['input'])}: {details['msg'][0].lower()}{details['msg'][1:]}"


def _disagreements(saved: SavedRun, state: State) -> Iterator[str]:
    """Yield what is wrong, in an order in which each check may rely on those before."""
    yield from _of_names(saved)
    yield from _of_masks(saved)
    yield from _of_parameters(saved)
    yield from _of_initial_weights(saved)
    for number, rank in enumerate(saved.ranks):
        yield from (f"ranks.{number}.{problem}" for problem in _of_rank(rank, saved.ranks[0]))
    yield from _of_method(saved, state["config"]["method"])


def _of_names(saved: SavedRun) -> Iterator[str]:
    for name in [*saved.masks.layers, *saved.optimizer, *saved.weights]:
        if name not in saved.weights or name not in saved.optimizer:
            yield f"{name}: has no {'weights' if name not in saved.weights else 'optimizer state'}"


def _of_masks(saved: SavedRun) -> Iterator[str]:
    for name, layer in saved.masks.layers.items():
        yield from (f"{name}: {problem}" for problem in _of_mask(layer))


def _of_parameters(saved: SavedRun) -> Iterator[str]:
    """Check stored values against the masks, and the masks against their budget."""
    keys, layers = STATE_KEYS.get(saved.config.train.optimizer.name), saved.masks.layers
    active = {name: layer.active_units for name, layer in layers.items()}
    for name, weights in saved.weights.items():
        size = torch.Size((active[name], layers[name].unit_size)) if name in layers else None
        yield from (f"{name}: {problem}" for problem in _of_values(weights, saved.optimizer[name], size, keys))
    total = sum(active[name] * layer.unit_size for name, layer in layers.items())
    if abs(total - saved.masks.budget) >= max((layer.unit_size for layer in layers.values()), default=1):
        yield f"masks: {total:,} weights are active, the budget is {saved.masks.budget:,}"


def _of_initial_weights(saved: SavedRun) -> Iterator[str]:
    for name, value in saved.initial_weights.items():
        if name not in saved.masks.layers or list(value.shape) != saved.masks.layers[name].shape:
            yield f"{name}: its initial weights {list(value.shape)} are of no such layer"


def _of_mask(layer: SavedLayer) -> Iterator[str]:
    """Check a mask before its bits are counted: there must be one for each unit."""
    if layer.mask_dims > len(layer.shape):
        yield f"units of {layer.mask_dims} dimensions in a shape of {len(layer.shape)}"
    elif problem := _of_bits(layer.mask, layer.units):
        yield f"its mask {problem}"
    elif layer.active_units == 0:
        yield "its mask has no active unit"
    elif layer.explored is None and layer.explored_inactive is None:
        yield "explored_inactive is missing"
    else:
        explored, flags = layer.explored, layer.units
        if explored is None:
            explored, flags = layer.explored_inactive, layer.units - layer.active_units
        assert explored is not None
        if problem := _of_bits(explored, flags):
            yield f"what it explored {problem}"


def _of_bits(packed: Tensor, flags: int) -> str | None:
    """Return what is wrong unless `flags` flags are packed there, and none beyond the last."""
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        return f"is {packed.dtype} of {packed.dim()} dimensions, not packed bits"
    if packed.numel() != -(-flags // 8):
        return f"takes {packed.numel():,} bytes, {flags:,} bits take {-(-flags // 8):,}"
    beyond = int(packed[-1]) & ((1 << (-flags % 8)) - 1) if flags else 0
    return f"has bits set beyond its last ({beyond.bit_count()})" if beyond else None


def _of_values(
    weights: Tensor, moments: Mapping[str, Any], size: torch.Size | None, keys: frozenset[str] | None
) -> Iterator[str]:
    """Check weights and moments. `size` is [active units, unit size] in a sparse layer; None in a whole parameter."""
    expected = weights.shape if size is None else size
    if not weights.is_floating_point():
        yield f"its weights are {weights.dtype}"
    if keys is not None and moments and moments.keys() != keys:
        yield f"its optimizer state has {', '.join(sorted(moments)):.60}, not {', '.join(sorted(keys))}"
    stored = {"weights": weights, **{k: v for k, v in moments.items() if isinstance(v, Tensor)}}
    for what, value in stored.items():
        if what == "step":
            if value.dim() != 0 or value.dtype not in (torch.float32, torch.float64):
                yield f"step: is {value.dtype} {list(value.shape)}, not a number of steps"
        elif value.shape != expected and size is not None:
            yield f"{what}: {value.numel():,} values are stored, its mask has {math.prod(size):,} active"
        elif value.shape != expected:
            yield f"{what}: {list(value.shape)} is stored, its weights are {list(expected)}"
        elif not value.is_floating_point():
            yield f"{what}: is {value.dtype}"
    if keys is not None and "step" in keys:
        yield from (f"{key}: is no tensor" for key, value in moments.items() if not isinstance(value, Tensor))


def _of_rank(rank: SavedRank, first: SavedRank) -> Iterator[str]:
    if rank.sums.dtype != torch.float64 or rank.sums.shape != (3,):
        yield f"sums is {rank.sums.dtype} {list(rank.sums.shape)}, not 3 of float64"
    shapes, others = ({name: (v.shape, v.dtype) for name, v in at.buffers.items()} for at in (rank, first))
    if shapes != others:
        name = next(n for n in {**shapes, **others} if shapes.get(n) != others.get(n))
        yield f"buffers.{name:.60} differs from that of rank 0 in shape or is of one alone"
    try:
        torch.Generator().set_state(rank.random.cpu)
    except (RuntimeError, TypeError):
        yield "random.cpu is no state of torch's generator"
    cuda = rank.random.cuda
    if cuda is not None and (cuda.dtype != torch.uint8 or cuda.shape != (16,)):
        yield "random.cuda is no state of a GPU's generator"


def _of_method(saved: SavedRun, settings: Mapping[str, Any]) -> Iterator[str]:
    """Check that the method's state is as it writes it, where this version knows the method."""
    try:
        method = _METHOD.validate_python(settings).build()
    except ValidationError:
        return
    try:
        layers = {name: (at.shape, at.active_units * at.unit_size) for name, at in saved.masks.layers.items()}
        method.check_state(saved.method, layers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        missing = isinstance(error, KeyError)
        yield f"method.{error.args[0]}{' is missing' if missing else ''}"
