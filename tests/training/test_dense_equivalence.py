"""The trainer at density 1 is plain DistributedDataParallel, bit for bit."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import pipelines
from dynsparse.config.schema import RunConfig
from dynsparse.runtime import Worker
from pipelines.base import Request
from pipelines.order import Share
from tests.ranks import run_distributed
from tests.training import runs

STEPS = 50


def by_hand(worker: Worker, settings: RunConfig) -> list[torch.Tensor]:
    """The loop of DDP's tutorial: no masks, no methods, nothing of ours but data and initial weights.

    With more than two ranks an all-reduced sum depends on where in a bucket it
    lies, and DDP moves its buckets after the first backward; so the yardstick
    too runs one backward before it begins.
    """
    torch.manual_seed(settings.seed)
    model = settings.model.build(settings.data.image_shape, settings.data.classes)
    known = inspect.signature(DistributedDataParallel.__init__).parameters  # renamed in torch 2.13
    off = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    parallel = DistributedDataParallel(model, **{off: False})
    if worker.world_size > 2:
        parallel(torch.zeros(3, *settings.data.image_shape)).sum().backward()
    train = settings.train
    assert train.optimizer.name == "sgd"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True)
    request = Request(settings.seed, train.global_batch_size, Share(worker.rank, worker.world_size), 10, None)
    for step in pipelines.build(settings.data, request).train.epoch():
        ((images, labels),) = step
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(images), labels).backward()
        optimizer.step()
    return [*model.parameters(), *(state["momentum_buffer"] for state in optimizer.state.values())]


def by_trainer(worker: Worker, settings: RunConfig) -> list[torch.Tensor]:
    trainer = runs.trainer(settings, worker)
    summary = trainer.fit()
    assert summary.steps == STEPS
    assert summary.active_weights == summary.sparse_layer_weights
    return [*trainer.model.parameters(), *(state["momentum_buffer"] for state in trainer.optimizer.state.values())]


def compare(worker: Worker, settings: RunConfig) -> list[bool]:
    pairs = zip(by_trainer(worker, settings), by_hand(worker, settings), strict=True)
    return [torch.equal(a, b) for a, b in pairs]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize(
    "method",
    [
        {"name": "dense"},
        {"name": "static"},
        {"name": "dsr", "period": 5, "initial_threshold": 0.02, "target_moves": 30},
    ],
    ids=lambda method: method["name"],
)
def test_density_1_equals_plain_ddp(method: dict[str, Any], world_size: int) -> None:
    settings = runs.config(
        method=method,
        model={"name": "small_cnn", "channels": [6, 8]},
        sparsity={"conv": 0.0, "fc": 0.0},
        data={"samples": STEPS * 12},
        train={"epochs": 1},
    )
    for equal in run_distributed(compare, world_size, settings):
        assert equal
        assert all(equal)


def test_the_comparison_would_notice() -> None:
    """A run at density 0.9 ends with other weights."""
    settings = runs.config(
        method={"name": "static"}, sparsity={"conv": 0.1, "fc": 0.1}, data={"samples": STEPS * 12}, train={"epochs": 1}
    )
    trainer = runs.trainer(settings)
    trainer.fit()
    assert any((parameter == 0).any() for parameter in trainer.model.parameters())
