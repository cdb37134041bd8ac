"""Checks that the parts of a checkpoint agree with each other. Nothing is built from it before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from torch import Tensor

from dynsparse.explain import kind_of
from dynsparse.methods import AnyMethod
from dynsparse.optimizers import STATE_KEYS, WHOLE
from dynsparse.training.checkpoint.format import State
from dynsparse.training.checkpoint.schema import SavedEma, SavedLayer, SavedRank, SavedRun

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
    yield from _of_norms(saved.gradient_norms)
    for number, rank in enumerate(saved.ranks):
        yield from (f"ranks.{number}.{problem}" for problem in _of_rank(rank, saved.ranks[0]))
    if saved.ema is not None:
        yield from _of_average(saved.ema, saved)
    yield from _of_shrinkages(saved)
    yield from _of_method(saved, state["config"]["method"])


def _of_shrinkages(saved: SavedRun) -> Iterator[str]:
    """Check that channels are numbered in rising order, and that shrinks follow each other."""
    epochs = [one.epoch for one in saved.shrinkages]
    if epochs != sorted(set(epochs)):
        yield f"shrinkages: their epochs are {epochs}, not in rising order"
    for number, one in enumerate(saved.shrinkages):
        for name, kept in one.modules.items():
            for value in (kept.outputs, kept.inputs):
                if value is not None and not _are_channels(value):
                    yield f"shrinkages.{number}.{name:.60} keeps channels that are not numbered in rising order"


def _are_channels(value: Tensor) -> bool:
    fits = value.dtype == torch.int64 and value.dim() == 1 and value.numel() > 0 and int(value[0]) >= 0
    return fits and bool((value[1:] > value[:-1]).all())


def _of_names(saved: SavedRun) -> Iterator[str]:
    for name in [*saved.masks.by_parameter, *saved.optimizer, *saved.weights]:
        if name not in saved.weights or name not in saved.optimizer:
            yield f"{name}: has no {'weights' if name not in saved.weights else 'optimizer state'}"


def _of_masks(saved: SavedRun) -> Iterator[str]:
    for name, layer in saved.masks.layers.items():
        yield from (f"{name}: {problem}" for problem in _of_mask(layer))
    for name, layers in saved.masks.by_parameter.items():
        yield from (f"{name}: {problem}" for problem in _of_blocks(layers))


def _of_blocks(layers: Sequence[SavedLayer]) -> Iterator[str]:
    """Check that the layers in a parameter are one without a place, or blocks that lie in it side by side."""
    blocks = [layer.block for layer in layers if layer.block is not None]
    if not blocks and len(layers) == 1:
        return
    ends = [0, *(block.start + layer.shape[0] for block, layer in zip(blocks, layers, strict=False))]
    overlap = any(block.start < end for block, end in zip(blocks, ends, strict=False))
    shapes = {(block.rows, *layer.shape[1:]) for block, layer in zip(blocks, layers, strict=False)}
    if len(blocks) < len(layers) or overlap or len(shapes) > 1 or ends[-1] > blocks[0].rows:
        yield "its layers do not lie in its rows side by side"


def _stored(layers: Sequence[SavedLayer] | None) -> torch.Size | None:
    """Shape in which active weights are stored: [active units, unit size], or all of a packed parameter in a row."""
    if layers is None:
        return None
    first = layers[0]
    if first.block is None:
        return torch.Size((first.active_units, first.unit_size))
    dense = first.block.rows - sum(layer.shape[0] for layer in layers)
    return torch.Size((dense * math.prod(first.shape[1:]) + sum(one.active_units * one.unit_size for one in layers),))


def _of_parameters(saved: SavedRun) -> Iterator[str]:
    """Check stored values against the masks, and the masks against their budget."""
    keys, layers = STATE_KEYS.get(saved.config.train.optimizer.name), saved.masks.layers
    by_parameter = saved.masks.by_parameter
    active = {name: layer.active_units for name, layer in layers.items()}
    for name, weights in saved.weights.items():
        size = _stored(by_parameter.get(name))
        yield from (f"{name}: {problem}" for problem in _of_values(weights, saved.optimizer[name], size, keys))
    total = sum(active[name] * layer.unit_size for name, layer in layers.items())
    if abs(total - saved.masks.budget) >= max((layer.unit_size for layer in layers.values()), default=1):
        yield f"masks: {total:,} weights are active, the budget is {saved.masks.budget:,}"


def _of_initial_weights(saved: SavedRun) -> Iterator[str]:
    for name, value in saved.initial_weights.items():
        if name not in saved.masks.layers or list(value.shape) != saved.masks.layers[name].shape:
            yield f"{name}: its initial weights {list(value.shape)} are of no such layer"


def _of_norms(sums: Tensor | None) -> Iterator[str]:
    if sums is not None and (sums.dtype != torch.float64 or sums.shape != (4,)):
        yield f"gradient_norms is {sums.dtype} {list(sums.shape)}, not 4 of float64"


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
        free = what in WHOLE or (keys is None and value.dim() == 0)
        problem = None if free else _of_step(value) if what == "step" else _of_shape(value, expected, size)
        if problem is None and not value.is_floating_point():
            problem = f"is {value.dtype}"
        if problem is not None:
            yield f"{what}: {problem}"
    if keys is not None and "step" in keys:
        yield from (f"{key}: is no tensor" for key, value in moments.items() if not isinstance(value, Tensor))


def _of_step(value: Tensor) -> str | None:
    """Return what is wrong with an optimizer's count of steps."""
    fits = value.dim() == 0 and value.dtype in (torch.float32, torch.float64)
    return None if fits else f"is {value.dtype} {list(value.shape)}, not a number of steps"


def _of_shape(value: Tensor, expected: torch.Size, size: torch.Size | None) -> str | None:
    """Return what is wrong with the shape of weights or moments."""
    if value.shape == expected:
        return None
    if size is not None:
        return f"{value.numel():,} values are stored, its mask has {math.prod(size):,} active"
    return f"{list(value.shape)} is stored, its weights are {list(expected)}"


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


def _of_average(ema: SavedEma, saved: SavedRun) -> Iterator[str]:
    """Check that the average has the shapes and types of the weights, and its buffers those of the model."""
    yield from _differing(ema.weights, saved.weights, "ema.weights")
    for number, rank in enumerate(saved.ranks):
        yield from _differing(rank.ema_buffers or {}, rank.buffers, f"ranks.{number}.ema_buffers")


def _differing(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> Iterator[str]:
    for name in [*expected, *found]:
        ours, theirs = ((at[name].shape, at[name].dtype) if name in at else None for at in (expected, found))
        if ours != theirs:
            yield f"{where}.{name:.60} differs from what it is the average of in shape or type, or is of one alone"


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
