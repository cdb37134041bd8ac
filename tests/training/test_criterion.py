"""Losses with hard and soft labels, by hand, and in runs that mix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dynsparse.config.sections import TrainSettings
from dynsparse.distributed import sync
from dynsparse.runtime import Worker
from dynsparse.training.criterion import LOSSES, Criterion
from dynsparse.training.preflight import require_samples_for_norm, warn_if_uneven
from tests.ranks import run_distributed
from tests.training import runs
from tests.training.test_resume import assert_same, state_after

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
HARD = torch.tensor([0, 1])
SOFT = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.6, 0.4]])
MIXING = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
IMAGES = {"name": "synthetic", "shape": [1, 6, 6], "samples": 100, "test_samples": 50, "threads": 1, "loader": "torch"}


def loss(labels: Tensor, **settings: Any) -> Tensor:
    return Criterion(TrainSettings(**settings))(LOGITS, labels)


def test_the_default_is_plain_cross_entropy_bit_for_bit() -> None:
    assert torch.equal(loss(HARD), functional.cross_entropy(LOGITS, HARD))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_by_hand(smoothing: float) -> None:
    targets = (1 - smoothing) * SOFT + smoothing / 3
    expected = -(targets * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(SOFT, label_smoothing=smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_by_hand(smoothing: float) -> None:
    """The mean over samples and classes of -(t log p + (1 - t) log(1 - p)), p the sigmoid of each logit."""
    targets, p = (1 - smoothing) * SOFT + smoothing / 3, LOGITS.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(loss(SOFT, loss="bce", label_smoothing=smoothing), expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_soft_label_of_one_class_is_a_hard_one(name: str, smoothing: float) -> None:
    soft = functional.one_hot(HARD, 3).float()
    torch.testing.assert_close(*(loss(labels, loss=name, label_smoothing=smoothing) for labels in (HARD, soft)))


def one_step(worker: Worker, train: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
    """Make the first step; returns the weights after it, and loss, hits and samples over all ranks.

    In evaluation mode: BatchNorm would see the statistics of each part.
    """
    trainer = runs.trainer(runs.config(data=IMAGES, method={"name": "static"}, train=train), worker)
    trainer.model.eval()
    trainer.train_step(next(trainer.data.train.epoch()))
    return dict(trainer.model.state_dict()), sync.sum_(trainer.engine.sums)


@pytest.mark.parametrize("loss", LOSSES)
def test_workers_and_micro_batches_make_the_same_step(loss: str) -> None:
    """Equal to rounding: sums differ in their order."""
    settings: dict[str, Any] = {"mixing": {**MIXING, "draw": "pair"}, "label_smoothing": 0.1, "loss": loss}
    weights, sums = one_step(Worker(), settings)
    others = [one_step(Worker(), {**settings, "micro_batches": 3})]
    if loss == "cross_entropy":
        others += run_distributed(one_step, 3, {**settings, "micro_batches": 2})[:1]
    for theirs, total in others:
        torch.testing.assert_close(theirs, weights, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(total, sums, rtol=1e-6, atol=0.0)
    plain, _ = one_step(Worker(), {"label_smoothing": 0.1, "loss": loss})
    assert not torch.allclose(plain["fc1.weight"], weights["fc1.weight"], rtol=1e-5, atol=1e-7)


def test_accuracy_is_counted_against_the_dominant_label() -> None:
    trainer = runs.trainer(runs.config(data=IMAGES, train={"mixing": {**MIXING, "draw": "pair"}}))
    step = next(trainer.data.train.epoch())
    ((images, labels),) = step
    trainer.engine.backward(step, whole=False, epoch=0)
    with torch.no_grad():
        found = trainer.model(images).argmax(1)
    assert labels.dim() == 2
    assert trainer.engine.sums.tolist()[1:] == [float((found == labels.argmax(1)).sum()), 12.0]


@pytest.mark.parametrize("stop", [5, 9])
def test_resumed_in_mid_epoch_it_mixes_on(stop: int) -> None:
    """Mixing ends with epoch 1 of 2, each of 8 steps."""
    settings = runs.config(data=IMAGES, train={"mixing": {**MIXING, "until_epoch": 1}, "loss": "bce"})
    whole, half = (state_after(Worker(), settings, None, at) for at in (None, stop))
    half["progress"]["seconds"] = 0.0
    assert_same(state_after(Worker(), settings, half, None), whole)


def test_uneven_parts_of_whole_pairs_are_said(caplog: pytest.LogCaptureFixture) -> None:
    settings = runs.config(train={"global_batch_size": 20, "mixing": MIXING})
    warn_if_uneven(settings, 3)
    assert "gets 6 or 8 samples of a global batch of 20" in caplog.text
    require_samples_for_norm(torch.nn.BatchNorm1d(3), settings, 10)
