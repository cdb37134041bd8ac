"""Gradients that travel while the backward pass makes the next ones, and passes that are replayed."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from dynsparse.errors import UserError
from dynsparse.runtime import Worker
from tests.ranks import run_distributed
from tests.training import runs

A_LAYER, ALL = 1, 100
"""MiB of gradients in a bucket."""
LAYERS = {"model": {"name": "mnist_mlp", "hidden": [512, 512, 512, 512]}}


def order(worker: Worker, bucket_mb: float, compiled: bool) -> list[str]:
    """Gradients and buckets of a step, in the order in which they came. The compiler's last stage is left out."""
    settings = runs.config(**LAYERS, train={"compile": compiled}, distributed={"bucket_mb": bucket_mb})
    with patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):
        trainer = runs.trainer(settings, worker)
    module, found = trainer.engine.parallel._module, list[str]()
    assert isinstance(module, DistributedDataParallel)

    def noted(state: None, bucket: Any) -> Any:
        found.append("bucket")
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]

    noted.__annotations__ = {}  # DDP compares them with classes, and here they are text.
    module.register_comm_hook(None, noted)
    trainer.engine.settle(epoch=0, gradients_before=None, always_whole=False)
    for name, parameter in trainer.model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: found.append(name))
    found.clear()
    trainer.engine.settle(epoch=0, gradients_before=None, always_whole=False)
    return found


@pytest.mark.parametrize("compiled", [pytest.param(False, marks=pytest.mark.slow), True])
def test_buckets_leave_before_the_backward_pass_ends(compiled: bool) -> None:
    """They do so too where it is compiled. One bucket for all waits for the last gradient."""
    for found in run_distributed(order, 2, A_LAYER, compiled):
        assert found.count("bucket") >= 3
        assert found.index("bucket") < len(found) // 2
        assert found[-1] == "bucket"
    for found in run_distributed(order, 2, ALL, compiled):
        assert found.index("bucket") == len(found) - 1


@pytest.mark.parametrize(
    ("train", "line"),
    [
        (
            {},
            "train.cuda_graphs is on and train.compile off, and it replays what is compiled: set train.compile=true",
        ),
        (
            {"compile": True, "micro_batches": 2},
            (
                "train.cuda_graphs is on and train.micro_batches is 2: a replay overwrites the gradients of the one "
                "before, which are to add up; leave one of them out"
            ),
        ),
    ],
)
def test_cuda_graphs_are_refused(train: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refused:
        runs.config(train={"cuda_graphs": True, **train})
    assert line in refused.value.lines[0]


def test_cuda_graphs_are_refused_on_a_processor() -> None:
    with pytest.raises(UserError, match=r"^train\.cuda_graphs is on, and the model is on the cpu: leave it off$"):
        runs.trainer(runs.config(train={"cuda_graphs": True, "compile": True}))
