"""Runs on a GPU that is none: every tensor of a run lies where it has to, and the bits are the processor's.

Ordinary steps stay open there, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch

import pipelines
from benchmarks.parts.live_memory import as_on_gpu
from dynsparse import later
from dynsparse.distributed import digest
from dynsparse.runtime import Worker
from dynsparse.training.building import data_request
from dynsparse.training.network import build_network
from dynsparse.training.trainer import Trainer
from pipelines.base import Data
from tests.pretended_gpu import pretended_gpu
from tests.ranks import run_distributed
from tests.training import runs

RUNS: dict[str, dict[str, Any]] = {
    "averages, AdamW": {
        "method": {"name": "rigl", "period": 3},
        "train": {"ema": {"decay": 0.7}, "optimizer": {"name": "adamw"}},
    },
    "micro-batches, channels last": {
        "method": {"name": "dsr", "period": 3},
        "train": {"channels_last": True, "micro_batches": 2},
    },
    "a reserve": {"method": {"name": "topkast", "period": 3}},
    "momenta of gradients": {"method": {"name": "sparse_momentum", "period": 3}},
    "layers without masks": {"method": {"name": "dense"}, "sparsity": {"conv": None, "fc": None}},
    "penalties, clipping": {
        "method": {"name": "set", "period": 3},
        "train": {"clip": {"norm": 1.0}, "penalty": {"l1": 1e-4}},
    },
}


def on(data: Data, device: torch.device) -> None:
    """Let the data give batches on a device, as DALI does."""
    epoch = data.train.epoch
    data.train.epoch = lambda: ([_moved(batch, device) for batch in step] for step in epoch())  # type: ignore[method-assign]
    for pipeline in (data.validation, data.test):
        if pipeline is not None:
            pipeline.batches = _moving(pipeline.batches, device)  # type: ignore[method-assign]


def _moving(batches: Any, device: torch.device) -> Any:
    def moved() -> Iterator[Any]:
        return (_moved(batch, device) for batch in batches())

    return moved


def _moved(batch: Any, device: torch.device) -> Any:
    return tuple(one.to(device) for one in batch)


def trained(worker: Worker, case: str, far: bool) -> tuple[int, int, list[float]]:
    """Train; return digests of masks and weights, and the losses."""
    settings = runs.config(**{**RUNS[case], "train": {"epochs": 2, **RUNS[case].get("train", {})}})
    with (
        pretended_gpu() if far else nullcontext(torch.device("cpu")) as device,
        as_on_gpu() if far else nullcontext(),
        patch.object(later, "is_far", lambda device: far),
    ):
        data = pipelines.build(settings.data, replace(data_request(settings, worker), device_id=None))
        on(data, device)
        trainer = Trainer(settings, build_network(settings, device), data, worker, observers=[])
        outcomes = trainer.outcomes
        with patch.object(outcomes, "leave_open", wraps=outcomes.leave_open) as left_open:
            trainer.fit()
        assert left_open.called == far
        results = trainer.evaluate()
        found = digest.mask_digest(trainer.masks), digest.weight_digest(trainer.model, trainer.masks)
    return (*found, [one.loss for one in (results.validation, results.test) if one is not None])


@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_has_the_bits_of_a_processor(case: str, world_size: int) -> None:
    far = run_distributed(trained, world_size, case, True)
    near = run_distributed(trained, world_size, case, False)
    assert far == near
