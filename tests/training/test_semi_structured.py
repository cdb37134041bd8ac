"""`train.semi_structured`: what it goes with, and that all ranks run the same layers by the same kernels."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from benchmarks.parts.gpu.bench import make_trainer
from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from dynsparse.sparse_kernels.modules import TrainedLinear
from dynsparse.sparse_kernels.operands import Reference
from dynsparse.training.semi_structured import adopt_faster
from tests.gpu.devices import GPU
from tests.ranks import run_distributed
from tests.sparse_kernels.test_semi_structured import IMAGES, Net, told
from tests.training import runs

FITTING: dict[str, Any] = {
    "model": {"name": "mnist_mlp", "hidden": [128, 64]},
    "method": {"name": "nm", "transposable": True, "period": 2},
    "sparsity": {"fc": 0.5, "structure": "2:4", "exclude": ["fc3.weight"]},
    "data": {"shape": [1, 8, 8]},
}


def on_a_rank(worker: Worker) -> list[Any]:
    """Ranks whose clocks differ: alone, rank 1 would have taken the other layer."""
    model = Net().bfloat16()
    timer = told(2.0, 1.0, 1.0, 2.0) if worker.rank == 0 else told(1.0, 2.0, 2.0, 1.0)
    chosen = adopt_faster(model, IMAGES.bfloat16(), nullcontext(), Reference, timer)
    return [list(chosen.sparse), type(model.hidden).__name__, type(model.point).__name__]


def test_ranks_run_the_same_layers() -> None:
    assert run_distributed(on_a_rank, 2) == [[["point"], "Linear", "TrainedPointwise"]] * 2


REMEDY = "set method.name to nm, method.transposable to true and sparsity.structure to 2:4"
ONE_OFF = "leave one of them off"
REFUSALS: dict[str, dict[str, Any]] = {
    f"train.semi_structured is on, and the masks are 2:4: {REMEDY}": {"method": {"name": "nm"}},
    f"train.semi_structured is on, and the masks are 1:4 transposable: {REMEDY}": {
        "sparsity": {"fc": 0.75, "structure": "1:4", "exclude": ["fc3.weight"]}
    },
    "train.semi_structured is on and train.precision is fp32: its kernels take 16 bits; set bf16 or fp16": {
        "train": {"precision": "fp32"}
    },
    f"train.semi_structured and train.compile are on, which replaces the layers' kernels: {ONE_OFF}": {
        "train": {"compile": True}
    },
    f"train.semi_structured and train.deterministic are on, which forbids a choice by the clock: {ONE_OFF}": {
        "train": {"deterministic": True},
        "distributed": {"gradients": "dense"},
    },
}


@pytest.mark.parametrize(("line", "changes"), REFUSALS.items())
def test_what_it_does_not_go_with(line: str, changes: dict[str, Any]) -> None:
    train = {"semi_structured": True, "precision": "bf16", **changes.get("train", {})}
    with pytest.raises(UserError) as refused:
        runs.config(**{**FITTING, **changes, "train": train})
    assert line in str(refused.value)


def test_on_a_cpu_it_is_refused() -> None:
    config = runs.config(**FITTING, train={"semi_structured": True, "precision": "bf16"})
    with pytest.raises(UserError) as refused:
        runs.trainer(config)
    assert str(refused.value) == "train.semi_structured is on, and the model is on the cpu: leave it off or use GPUs"


@pytest.mark.gpu
def test_a_run_on_a_gpu_learns_as_the_dense_one_does() -> None:
    """All layers that can run so, whether faster or not."""
    losses = []
    for on in (False, True):
        trainer = make_trainer(runs.config(**FITTING, train={"semi_structured": on, "precision": "bf16"}), GPU)
        if on:
            images, timer = torch.zeros(12, 1, 8, 8, device=GPU), told(*[2.0, 1.0] * 8)
            adopt_faster(trainer.model, images, trainer.engine.precision.autocast(), timer=timer)
            assert any(isinstance(one, TrainedLinear) for one in trainer.model.modules())
        losses.append([float(trainer.train_step(batch)) for batch in trainer.data.train.epoch()])
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 0.1
