"""Bytes that a forward pass keeps: counted on shapes, and by the same hooks in a real one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dynsparse.training.activations import kept_bytes, of_step
from dynsparse.training.trainer import Trainer
from pipelines.base import Batch
from tests.training import runs

CONV = {"name": "small_cnn"}


def first_batch(trainer: Trainer) -> Batch:
    return next(trainer.data.train.epoch())[0]


def really_kept(trainer: Trainer, batch: Batch) -> int:
    known = [*trainer.model.parameters(), *trainer.model.buffers()]
    return kept_bytes(lambda: trainer.engine.loss(*batch, trainer.model)[1], known)


@pytest.mark.parametrize(
    ("model", "train"),
    [
        ({"name": "mnist_mlp", "hidden": [24, 12]}, {}),
        ({"name": "mnist_mlp", "hidden": [24, 12]}, {"precision": "bf16", "loss": "bce"}),
        ("conv", {}),
        ("conv", {"precision": "bf16", "channels_last": True, "micro_batches": 2}),
    ],
)
def test_as_many_bytes_as_a_real_forward_keeps(model: Any, train: dict[str, Any]) -> None:
    conv = {"model": CONV, "data": {"shape": [3, 32, 32]}} if model == "conv" else {"model": model}
    trainer = runs.trainer(runs.config(**conv, train=train))
    trainer.model.train()
    batch = first_batch(trainer)
    state = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    counted = of_step(trainer.engine, batch)
    assert isinstance(counted, int)
    assert all(torch.equal(tensor, state[name]) for name, tensor in trainer.model.state_dict().items())
    really = really_kept(trainer, batch)
    assert really - counted in {0, of_norms(trainer)}
    assert counted > batch[0].nbytes


def of_norms(trainer: Trainer) -> int:
    """Return the bytes that torch's shapes lack in bf16: a mean and a deviation a channel are 2 bytes, not 4."""
    norms = [one for one in trainer.model.modules() if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)]
    return 4 * sum(norm.num_features for norm in norms) if trainer.config.train.precision == "bf16" else 0


def test_half_the_samples_keep_half() -> None:
    trainer = runs.trainer(runs.config())
    images, labels = first_batch(trainer)
    whole, half = (of_step(trainer.engine, (images[:n].clone(), labels[:n].clone())) for n in (12, 6))
    norms = 8 * sum(norm.num_features for norm in trainer.model.modules() if isinstance(norm, nn.BatchNorm1d))
    assert isinstance(whole, int) and isinstance(half, int)
    assert whole - 2 * half == -(norms + 4), "statistics and the loss's weight are one for each batch"


def test_each_storage_counts_once_and_weights_do_not() -> None:
    model = nn.Linear(3, 2, bias=False)
    images = torch.ones(5, 3, requires_grad=True)

    def forward() -> torch.Tensor:
        lost = model(images).exp()  # Its graph is gone at the end.
        del lost
        return (model(images).sigmoid() + model(images.view(5, 3)).sum()).sum()

    assert kept_bytes(forward, model.parameters()) == images.nbytes + 5 * 2 * 4


def test_a_network_that_asks_for_values() -> None:
    trainer = runs.trainer(runs.config())
    trainer.model.register_forward_pre_hook(lambda module, images: print(images[0].sum().item()))
    found = of_step(trainer.engine, first_batch(trainer))
    assert isinstance(found, str) and found.startswith("the network does not run on shapes alone (")
    assert "\n" not in found
