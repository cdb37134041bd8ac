from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from dynsparse.runtime import Worker
from dynsparse.training.evaluate import Evaluation, evaluate, hits
from tests.ranks import run_distributed


class Samples:
    """An evaluation pipeline over given tensors."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, claimed: int, batch: int = 3) -> None:
        self.samples = claimed
        self.left_out = 0
        self._batches = list(zip(images.split(batch), labels.split(batch), strict=True)) if len(labels) else []

    def batches(self) -> object:
        return iter(self._batches)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(11, 7, generator=generator), torch.randint(7, (11,), generator=generator)


def share(worker: Worker) -> Evaluation:
    images, labels = data()
    start, end = worker.rank * 11 // worker.world_size, (worker.rank + 1) * 11 // worker.world_size
    pipeline = Samples(images[start:end], labels[start:end], claimed=11)
    return evaluate(nn.Identity(), pipeline, torch.device("cpu"), nullcontext)  # type: ignore[arg-type]


def test_worked_by_hand() -> None:
    """Logits for 6 classes. Top-1 right in the first of three; top-5 in the first two (the third's label is last)."""
    logits = torch.tensor([[5.0, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0]])
    labels = torch.tensor([0, 2, 5])
    result = evaluate(nn.Identity(), Samples(logits, labels, 3, batch=2), torch.device("cpu"), nullcontext)  # type: ignore[arg-type]
    assert result.top1 == pytest.approx(100 / 3)
    assert result.top5 == pytest.approx(200 / 3)
    log_sum = math.log(sum(math.exp(x) for x in range(6)))
    assert result.loss == pytest.approx(((log_sum - 5) + (log_sum - 3) + (log_sum - 0)) / 3)


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_any_number_of_workers_gives_the_same(workers: int) -> None:
    alone = share(Worker())
    for result in run_distributed(share, workers):
        assert result.samples == 11
        assert (result.top1, result.top5) == (alone.top1, alone.top5)
        assert result.loss == pytest.approx(alone.loss, rel=1e-6)


def test_a_missed_sample_is_noticed() -> None:
    images, labels = data()
    with pytest.raises(AssertionError, match="evaluated 11 samples of 12"):
        evaluate(nn.Identity(), Samples(images, labels, claimed=12), torch.device("cpu"), nullcontext)  # type: ignore[arg-type]


def test_fewer_than_five_classes() -> None:
    assert int(hits(torch.eye(3), torch.tensor([0, 1, 0]), 5)) == 3


def test_the_mode_is_restored() -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    images, labels = data()
    for mode in (True, False):
        model.train(mode)
        evaluate(model, Samples(images, labels, 11), torch.device("cpu"), nullcontext)  # type: ignore[arg-type]
        assert model.training is mode
