"""Weights that stay dense, with the reason for each, for the table of layers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dynsparse.config.schema import RunConfig
from dynsparse.masks import LayerSpec
from dynsparse.masks.candidates import Candidate, candidates, matching
from dynsparse.masks.granularity import Kind
from dynsparse.masks.naming import named_parameters


@dataclass(frozen=True)
class DenseWeight:
    """Weight that stays dense, or all biases and norms together."""

    name: str
    shape: tuple[int, ...]
    weights: int
    reason: str


def dense_weights(config: RunConfig, model: nn.Module, specs: Sequence[LayerSpec]) -> list[DenseWeight]:
    """List what stays dense in the config's model, given its sparse layers, in the model's order."""
    known = candidates(model, split_of(config))
    excluded = matching(model, config.sparsity.exclude, "sparsity.exclude", known)
    usual = config.model.dense_by_default(model)
    sparse = {spec.name for spec in specs}
    found = [
        DenseWeight(name, one.shape, math.prod(one.shape), _reason(config, name, one, excluded, usual))
        for name, one in known.items()
        if name not in sparse and one.parameter is not None
    ]
    return [*found, *_vectors(model)]


def _reason(config: RunConfig, name: str, one: Candidate, excluded: Collection[str], usual: Mapping[str, str]) -> str:
    """Reason for a weight that can be sparse to be dense."""
    parameter = name if one.block is None else one.block.parameter
    if name in excluded:
        return "sparsity.exclude"
    if config.sparsity.include is None and not one.by_default:
        return "embedding or scale, no layer's weight"
    if config.sparsity.include is None and parameter in usual:
        return usual[parameter]
    if one.kind not in kinds_of(config):
        return f"sparsity.{one.kind} {'is not said' if getattr(config.sparsity, one.kind) is None else 'is 0'}"
    return "not in sparsity.include" if config.sparsity.include is not None else f"{config.model.name} leaves it out"


def _vectors(model: nn.Module) -> Iterator[DenseWeight]:
    sizes = [one.numel() for one in named_parameters(model).values() if one.dim() < 2]
    if sizes:
        yield DenseWeight(f"{len(sizes):,} biases and norms", (), sum(sizes), "one number an output")


def kinds_of(config: RunConfig) -> list[Kind]:
    """Kinds of layers that the config makes sparse, or would: all, where a method or other masks say it later."""
    every = config.method.starts == "dense" or not config.sparsity.is_said
    return [kind for kind, value in config.sparsity.shares.items() if value > 0 or every]


def split_of(config: RunConfig) -> Mapping[str, int] | None:
    """Parameters to split into layers, as the config says; None for tied layers, which are whole parameters."""
    return None if config.method.starts == "tied" else config.sparsity.split


def asked_for(config: RunConfig, kinds: Collection[Kind]) -> str:
    """Words for the zeros that the config asks for in these kinds of layers, at the end of the run."""
    share = config.method.final_sparsity(config.sparsity.shares)
    words: dict[Kind, str] = {"conv": "convolutions", "fc": "linear layers"}
    parts = {kind: f"{100 * share[kind]:g} %" for kind in words if kind in kinds and kind in share}
    if len(set(parts.values())) == 1:
        return next(iter(parts.values()))
    return " and ".join(f"{part} of {words[kind]}" for kind, part in parts.items())
