"""The cases of `steps`, `memory` and `startup`: networks, and ways to train them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.harness.runs import run_config
from dynsparse.config.schema import RunConfig

THREADS = 2
DENSE, STATIC, DSR, DEEPR, MULTIPLIED = "dense", "static", "dsr", "deepr", "multiplied"
METHODS: Mapping[str, Mapping[str, Any]] = {
    DENSE: {"name": "dense"},
    MULTIPLIED: {"name": "dense"},
    STATIC: {"name": "static"},
    DSR: {"name": "dsr", "period": 1_000_000},
    DEEPR: {"name": "deepr"},
}
PENALTY = {"l1": 1e-5}
"""deepr's, as in its configs."""


@dataclass(frozen=True)
class Case:
    """A network, its data, and how much is measured."""

    title: str
    model: Mapping[str, Any]
    image: int
    classes: int
    batch: int
    moves: int
    """Weights that a reallocation of dsr moves."""
    period: int
    """Steps from one to the next; both as in the paper's first epochs (configs/)."""
    rounds: int = 10
    ways: tuple[str, ...] = (DENSE, STATIC, DSR, DEEPR, MULTIPLIED)
    precision: str = "fp32"
    compile: bool = False
    sparsity: float = 0.9


RESNET = Case("ResNet-50", {"name": "imagenet_resnet50"}, 224, 1000, batch=8, moves=400_000, period=1000, rounds=13)
_WRN_MODEL = {"name": "cifar10_WideResNet", "depth": 28, "widen_factor": 2}
WRN = Case("WRN-28-2", _WRN_MODEL, 32, 10, batch=64, moves=20_000, period=100)


def tiny(case: Case) -> Case:
    small = {"widen_factor": 0.1} if case.model["name"] == "imagenet_resnet50" else {"depth": 10, "widen_factor": 0.5}
    return replace(case, model={**case.model, **small}, image=32, classes=10, batch=2, moves=50, rounds=2)


def settings(case: Case, method: Mapping[str, Any], *, masks: bool = True, **train: Any) -> RunConfig:
    """Return the config of a run with this method. Without masks no layer is sparse: plain dense training."""
    fixed = {"global_batch_size": case.batch, "lr": {"name": "steps", "table": {0: 0.01}}}
    formats = {"precision": case.precision, "compile": case.compile}
    penalty = {"penalty": PENALTY} if method["name"] == "deepr" else {}
    return run_config(
        case.model,
        method,
        case.image,
        case.classes,
        sparsity={"conv": case.sparsity, "fc": case.sparsity, "exclude": [] if masks else ["*"]},
        data={"samples": 4 * case.batch, "test_samples": 2, "loader": "torch"},
        train={**fixed, **formats, **penalty, **train},
        log={"every_steps": 1},
    )


def settings_of(case: Case, way: str) -> RunConfig:
    return settings(case, METHODS[way], masks=way not in (DENSE, MULTIPLIED))
