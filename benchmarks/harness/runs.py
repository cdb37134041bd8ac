"""Runs to measure: configs of made-up data, trainers at their first step, batches, moving weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import pipelines
from dynsparse.config import loading
from dynsparse.config.schema import RunConfig
from dynsparse.masks import MaskSet
from dynsparse.methods.base import Method
from dynsparse.reallocation import ReallocationReport
from dynsparse.runtime import Worker
from dynsparse.training.callbacks import Callback
from dynsparse.training.network import Network
from dynsparse.training.trainer import Trainer
from pipelines.base import Batch, Data, EvaluationPipeline, Request
from pipelines.order import Share

Section = Mapping[str, Any]
CPU = torch.device("cpu")


def run_config(model: Section, method: Section, image: int, classes: int, **sections: Section) -> RunConfig:
    """Return the config of a run at sparsity 0.9 on synthetic images. `sections` adds to these, or adds others."""
    document: dict[str, Section] = {
        "model": model,
        "sparsity": {"conv": 0.9, "fc": 0.9},
        "method": method,
        "data": {"name": "synthetic", "shape": [3, image, image], "number_of_classes": classes},
    }
    for name, section in sections.items():
        document[name] = {**document.get(name, {}), **section}
    return loading.parse({name: dict(section) for name, section in document.items()})


def data_of(config: RunConfig, worker: Worker | None = None, device: torch.device = CPU) -> Data:
    """Build the data as a run does, for evaluation in batches of 10."""
    worker = worker or Worker()
    share = Share(worker.rank, worker.world_size, 1)
    batch = config.train.batch_at(0)
    return pipelines.build(config.data, Request(config.seed, batch, share, 10, device.index))


def evaluation_of(data: Data) -> EvaluationPipeline:
    """Return the test samples, which these data have."""
    assert data.test is not None
    return data.test


def made_up_batch(images: int, size: int, classes: int, device: torch.device) -> list[Batch]:
    """Return a step's batches, of which there is one: images [images, 3, size, size] and labels."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(images, 3, size, size, generator=generator)
    return [(pixels.to(device), torch.randint(classes, (images,), generator=generator).to(device))]


def settled(config: RunConfig, network: Network, data: Data, worker: Worker | None = None, **options: Any) -> Trainer:
    """Return a trainer at its first step, as `fit` gets there."""
    trainer = Trainer(config, network, data, worker or Worker(), **options)
    trainer.settle()
    network.initial_weights = {}
    return trainer


def threshold_above(method: Method, masks: MaskSet, count: int) -> float:
    """Return the drop score below which `count` active units lie, as long as no two scores are the same."""
    scores = torch.cat([method.drop_scores(layer) for layer in masks])
    return float(scores.kthvalue(count + 1).values)


class Moves(Callback):
    """A list of how many weights each reallocation dropped."""

    def __init__(self) -> None:
        self.dropped: list[int] = []

    def on_reallocation(self, report: ReallocationReport) -> None:
        """Note how many weights were dropped, in all layers together."""
        self.dropped.append(sum(report.dropped.values()))


class GivenGradients(nn.Module):
    """A model. Given gradients instead of images, a loss that has exactly them and takes next to no work."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor | list[Tensor]) -> Tensor:
        """Return the logits of images, or the loss that has these gradients, one a parameter."""
        if isinstance(images, Tensor):
            logits: Tensor = self.model(images)
            return logits
        pairs = zip(self.model.parameters(), images, strict=True)
        return torch.stack([(weight * gradient).sum() for weight, gradient in pairs]).sum()


class Multiplied(nn.Module):
    """w * mask, with a float mask in a buffer."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the masked weight, which the module computes with."""
        return weight * self.mask


def multiply(model: nn.Module, sparse: Network) -> None:
    """Multiply a model's weights by the masks of another at every forward, as many published codes do."""
    for layer in sparse.masks:
        module = model.get_submodule(layer.name.removesuffix(".weight"))
        parametrize.register_parametrization(module, "weight", Multiplied(layer.mask.to(layer.weight.dtype)))
