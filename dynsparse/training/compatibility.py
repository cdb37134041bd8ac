"""Does a checkpoint fit this run? Each function raises UserError where it does not, and names what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from dynsparse.config.schema import RunConfig
from dynsparse.errors import UserError
from dynsparse.masks import MaskSet
from dynsparse.optimizers import TorchSettings
from dynsparse.training import packing
from dynsparse.training.judged import best_by

AT_START = (
    "model.weights",
    "start.weights_from",
    "start.masks_from",
    "sparsity.allocation",
    "sparsity.initial",
    "method.initial_threshold",
    "train.start_epoch",
)
"""Settings that act as a new run starts, and never again: a resume takes weights, masks and place from a checkpoint."""


def require_same_settings(state: Mapping[str, Any], config: RunConfig) -> None:
    """Raise UserError if the state was made with another method, optimizer or sparsity: it would mean nothing.

    So too for another setting of the start, which would have no effect.
    """
    theirs = state["config"]
    for kind, before, now in (
        ("method", theirs["method"]["name"], config.method.name),
        ("optimizer", theirs["train"]["optimizer"]["name"], config.train.optimizer.name),
        ("sparsity.conv", theirs["sparsity"]["conv"], config.sparsity.conv),
        ("sparsity.fc", theirs["sparsity"]["fc"], config.sparsity.fc),
        ("train.ema.best_by", best_by(theirs["train"].get("ema")), best_by(config.as_dict()["train"]["ema"])),
    ):
        if before != now and now is not None:  # Older checkpoints had a sparsity of layers that there are none of.
            raise UserError(f"the checkpoint was made with {kind} {before}, this run has {now}; resume with the same")
    _require_same_start(theirs, config)
    _require_state_of_optimizer(state["optimizer"], config)


def _require_same_start(theirs: Mapping[str, Any], config: RunConfig) -> None:
    """Raise UserError for a setting of `AT_START` that is not the checkpoint's. Older checkpoints lack some."""
    ours, unknown = config.as_dict(), object()
    for key in AT_START:
        section, name = key.split(".")
        before, now = theirs.get(section, {}).get(name, unknown), ours[section].get(name)
        if before not in (unknown, now):
            raise UserError(
                f"{key} acts at a run's start alone: the checkpoint was made with {before}, this run has {now}; resume "
                f"with the same, or begin a new run (name=...)"
            )


def _require_state_of_optimizer(saved: Mapping[str, Mapping[str, Any]], config: RunConfig) -> None:
    """Raise UserError if options of the optimizer ask for state that the checkpoint has of no parameter.

    Without any state, as of plain SGD, the optimizer begins anew.
    """
    optimizer = config.train.optimizer
    kept = {key for one in saved.values() for key in one}
    if isinstance(optimizer, TorchSettings) and kept and (missing := sorted(optimizer.state_keys - kept)):
        raise UserError(
            f"the checkpoint's optimizer has no {' or '.join(missing)}, which {optimizer.name} keeps with these "
            f"train.optimizer.options: resume with the same options"
        )


def require_same_evaluation(state: Mapping[str, Any], ours: Mapping[str, str]) -> None:
    """Raise UserError if other samples choose the best epoch now, or test it: earlier figures would not compare.

    Checkpoints of older versions do not say which samples they were.
    """
    theirs = state.get("evaluated_on", ours)
    for name in ("validation", "test"):
        before, now = theirs.get(name), ours.get(name)
        if before != now:
            there = "has none" if now is None else "has some" if before is None else "has others"
            raise UserError(
                f"the checkpoint was evaluated on {'no' if before is None else 'certain'} {name} samples, this run "
                f"{there}: resume with the same, or start a new run from its weights (start.weights_from)"
            )


def require_same_layers(state: Mapping[str, Any], config: RunConfig, model: nn.Module, masks: MaskSet) -> None:
    """Raise UserError if the state has another model or other sparse layers, naming what differs."""
    require_same_shapes(state, model)
    mine = {layer.name: (layer.spec.mask_dims, layer.spec.parameter) for layer in masks}
    saved = {
        name: (layer["mask_dims"], (layer.get("block") or {"parameter": name})["parameter"])
        for name, layer in state["masks"]["layers"].items()
    }
    for name in [*mine, *saved]:
        if mine.get(name) != saved.get(name):
            raise UserError(
                f"the checkpoint has other sparse layers: {name} differs in granularity or is sparse in one only; "
                f"use its sparsity.granularity, split, include and exclude"
            )
    if config.method.starts == "tied" and state["config"]["seed"] != config.seed:
        raise UserError(
            f"the checkpoint was made with seed {state['config']['seed']}, this run has {config.seed}; "
            f"the seed says which weights are tied: take the same"
        )


def require_same_shapes(state: Mapping[str, Any], model: nn.Module) -> None:
    """Raise UserError if the state has another model's shapes. The model's own weights do not matter."""
    sparse = packing.sparse_shapes(state["masks"]["layers"])
    theirs = {name: sparse.get(name, tuple(value.shape)) for name, value in state["weights"].items()}
    _require_same({name: tuple(value.shape) for name, value in model.named_parameters()}, theirs)
    buffers = {name: tuple(value.shape) for name, value in packing.buffers(model).items()}
    for number, rank in enumerate(state["ranks"]):
        theirs = {name: tuple(value.shape) for name, value in rank["buffers"].items()}
        _require_same(buffers, theirs, f" of rank {number}")


def _require_same(ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]], where: str = "") -> None:
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"the checkpoint is of another model: {name}{where} is {_shape(theirs.get(name))} there, "
                f"{_shape(ours.get(name))} here; use the config that it was made with"
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"
