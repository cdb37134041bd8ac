"""Recipes of `benchmarks.reproduce`: data sets, and what each method adds to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Config = dict[str, Any]
FRACTION = 0.1
"""Fraction of the active weights moved in one reallocation: dynamic sparse training's aim, and what SET drops."""


@dataclass(frozen=True)
class Recipe:
    """Settings that all methods on a data set share."""

    base: Config
    kind: str
    """Kind of the sparse layers: conv or fc."""
    sparse_weights: int
    """Weights in these layers."""
    period: dict[int, int]
    stop_epoch: int
    pruning_epochs: int
    """Epochs of pruning, after those of the dense network that is pruned."""
    thin: dict[float, Config]
    """Settings of the dense network with as many parameters, by sparsity."""


def _mlp(epochs: int, steps: Sequence[int]) -> Config:
    first, second = steps
    return {
        "model": {"name": "mnist_mlp"},
        "train": {
            "epochs": epochs,
            "global_batch_size": 64,
            "lr": {"name": "steps", "table": {0: 0.1, first: 0.02, second: 0.004}},
        },
    }


# Widths with which the whole dense network has about as many parameters as the sparse one, BatchNorm included.
THIN_MLP = {0.9: [34, 12], 0.95: [18, 6], 0.98: [8, 3], 0.99: [4, 2]}

RECIPES = {
    "digits": Recipe(
        base={**_mlp(40, (20, 32)), "data": {"name": "digits", "threads": 1}},
        kind="fc",
        sparse_weights=266_200,
        period={0: 20, 20: 40},
        stop_epoch=36,
        pruning_epochs=20,
        thin={sparsity: {"model": {"hidden": hidden}} for sparsity, hidden in THIN_MLP.items()},
    ),
    "mnist": Recipe(
        base={**_mlp(100, (50, 80)), "data": {"name": "mnist", "download": True}},
        kind="fc",
        sparse_weights=266_200,
        period={0: 100, 25: 200, 50: 400, 75: 800},
        stop_epoch=95,
        pruning_epochs=50,
        thin={sparsity: {"model": {"hidden": hidden}} for sparsity, hidden in THIN_MLP.items()},
    ),
    "cifar10": Recipe(
        base={
            "model": {"name": "cifar10_WideResNet", "widen_factor": 2.0},
            "data": {"name": "cifar10", "download": True},
            "train": {
                "epochs": 200,
                "global_batch_size": 100,
                "optimizer": {"name": "sgd", "weight_decay": 5e-4},
                "lr": {"name": "steps", "table": {0: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008}},
            },
        },
        kind="conv",
        sparse_weights=1_451_520,
        period={0: 100, 25: 200, 80: 400, 140: 800},
        stop_epoch=190,
        pruning_epochs=50,
        thin={
            sparsity: {"model": {"widen_factor": width}}
            for sparsity, width in {0.9: 0.66, 0.95: 0.48, 0.98: 0.34, 0.99: 0.28}.items()
        },
    ),
}

METHODS = {
    "dense": "dense",
    "pruning": "iterative pruning of the dense network",
    "dsr": "dynamic sparse reparameterization",
    "sparse_momentum": "sparse momentum",
    "rigl": "RigL",
    "rigl_erk": "RigL, ERK",
    "set": "SET",
    "deepr": "DeepR",
    "static": "static sparse",
    "tied": "tied (HashedNets)",
    "thin": "thin dense",
}


def settings_of(method: str, recipe: Recipe, sparsity: float, dense_run: Path) -> Config:
    """Return what one method adds to the recipe."""
    moves = {"period": recipe.period, "stop_epoch": recipe.stop_epoch}
    steps = {"rigl": recipe.period, "rigl_erk": recipe.period}.get(method)
    target = round(FRACTION * (1 - sparsity) * recipe.sparse_weights)
    epochs = recipe.pruning_epochs
    sections: dict[str, Config] = {
        "dense": {"method": {"name": "dense"}},
        "thin": {"method": {"name": "dense"}, **recipe.thin.get(sparsity, {})},
        "static": {"method": {"name": "static"}},
        "tied": {"method": {"name": "tied"}},
        "dsr": {"method": {"name": "dsr", "target_moves": target, **moves}},
        "set": {"method": {"name": "set", "fraction": FRACTION, **moves}},
        # As in the paper's jobs: L1 instead of weight decay, and a temperature that falls.
        "deepr": {
            "method": {
                "name": "deepr",
                "eta": 0.01,
                "temperature": {0: 1e-5, recipe.stop_epoch // 2: 1e-8},
                "stop_epoch": recipe.stop_epoch,
            },
            "train": {"penalty": {"l1": 1e-5}, "optimizer": {"name": "sgd", "weight_decay": 0.0}},
        },
        "rigl": {"method": {"name": "rigl", "period": steps}},
        "rigl_erk": {"method": {"name": "rigl", "period": steps}, "sparsity": {"allocation": "erk"}},
        # With the default of 0.5 it starves layers at 98 %: where all weights of a neuron are new, and so 0, BatchNorm
        # divides by next to nothing, and such neurons hold 99.8 % of the first layer's momentum.
        "sparse_momentum": {"method": {"name": "sparse_momentum", "fraction": 0.2}},
        "pruning": {
            "method": {
                "name": "pruning",
                "after_epoch": 0,
                "every_epochs": 1,
                "iterations": epochs // 2,
                "schedule": "cubic",
                f"target_{recipe.kind}": sparsity,
                f"target_{'fc' if recipe.kind == 'conv' else 'conv'}": 0.0,
            },
            "start": {"weights_from": str(dense_run)},
            "train": {
                "epochs": epochs,
                "lr": {"name": "steps", "table": {0: 0.02, epochs // 2: 0.02, 3 * epochs // 4: 0.004}},
            },
        },
    }
    return sections[method]


def merged(base: Config, more: Config) -> Config:
    """Lay `more` over `base`, section by section; a section of another name replaces it."""
    result = dict(base)
    for key, value in more.items():
        known = result.get(key)
        both = isinstance(value, dict) and isinstance(known, dict) and value.get("name") in (None, known.get("name"))
        table = both and any(isinstance(k, int) for k in value)  # By epoch: one value.
        result[key] = merged(result[key], value) if both and not table else value
    return result
