"""Dropout and stochastic depth in runs: other numbers on each worker, the same ones in a repeated or resumed run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynsparse.runtime import Worker
from dynsparse.seeds import seed_for
from dynsparse.training.forward_seeds import each
from pipelines.order import Share
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_resume import assert_same, state_after

RANDOM = {"name": "cifar10_WideResNet", "depth": 10, "widen_factor": 0.125, "drop_path_rate": 0.5, "dropout": 0.3}


def settings(micro_batches: int = 1, **train: Any) -> Any:
    return runs.config(
        model=RANDOM,
        sparsity={"conv": 0.5},
        data={"shape": [3, 8, 8], "samples": 40},
        train={"epochs": 1, "micro_batches": micro_batches, **train},
        method={"name": "rigl", "period": 2},
    )


def masks_drawn(worker: Worker, micro_batches: int) -> list[Tensor]:
    """Zeros of the first dropout in each micro-batch of three steps."""
    trainer = runs.trainer(settings(micro_batches), worker)
    trainer._start()
    found: list[Tensor] = []
    first = next(module for module in trainer.model.modules() if isinstance(module, nn.Dropout))
    first.register_forward_hook(lambda module, inputs, output: found.append((output == 0) & (inputs[0] != 0)))
    for micro_batches_, _ in zip(trainer.steps(), range(3), strict=False):
        trainer.train_step(micro_batches_)
    return found


def test_a_part_of_a_batch_has_its_own_numbers_wherever_it_is_computed() -> None:
    one = masks_drawn(Worker(), 2)
    first, second = run_distributed(masks_drawn, 2, 1)
    assert len(one) == 6 and len(first) == len(second) == 3
    # The networks differ in their last bits from the second step on, and dropped zeros do not count.
    assert torch.equal(one[0], first[0]) and torch.equal(one[1], second[0])
    shapes = {part.shape for part in one}
    assert len(shapes) == 1
    assert not any(torch.equal(a, b) for i, a in enumerate(one) for b in one[:i]), "other numbers in each part and step"


@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_in_mid_epoch(stop: int) -> None:
    whole = state_after(Worker(), settings(), None, None)
    part = state_after(Worker(), settings(), None, stop)
    assert part["progress"]["step"] == stop
    assert_same(state_after(Worker(), settings(), part, None), whole)


def test_whatever_draws_between_steps_changes_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's numbers are seeded anew for each step: they do not hang on what an observer or a save has drawn."""
    plain, disturbed = runs.trainer(settings()), runs.trainer(settings())
    step = disturbed.train_step

    def after_a_draw(micro_batches: Any) -> Tensor:
        torch.rand(7)
        return step(micro_batches)

    monkeypatch.setattr(disturbed, "train_step", after_a_draw)
    assert plain.fit().weight_digest == disturbed.fit().weight_digest


def test_a_forward_pass_draws_as_after_torchs_own_seeding() -> None:
    images, labels = torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)
    share = Share(rank=1, workers=2, micro_batches=2)
    drawn = [torch.rand(3) for _ in each([(images, labels)] * 2, 7, 5, share, images.device)]
    for place, numbers in enumerate(drawn, start=2):
        torch.manual_seed(seed_for(7, "forward", 5, place))
        assert torch.equal(numbers, torch.rand(3))
