"""A plain loop that shares nothing with `dynsparse` but the network, the data and their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

import pipelines
from dynsparse.config.schema import RunConfig
from pipelines.base import Data, Request
from pipelines.order import Share

Parts = Mapping[float, float]
"""Values, each from a fraction of training on. The first begins at 0."""


def at(values: Parts, progress: float) -> float:
    """Return the value that holds after a fraction of training."""
    return values[max(begin for begin in values if begin <= progress)]


def data_of(config: RunConfig, seed: int) -> Data:
    """Read the data of a run of one worker."""
    return pipelines.build(config.data, Request(seed, config.train.batch_at(0), Share(0, 1, 1), 256, None))


def random_mask(weight: Tensor, sparsity: float, generator: torch.Generator) -> Tensor:
    """Draw the active weights of a layer: bool [weights]."""
    order = torch.randperm(weight.numel(), generator=generator)
    active = round((1 - sparsity) * weight.numel())
    return torch.zeros(weight.numel(), dtype=torch.bool).index_fill_(0, order[:active], True)


def linear_weights(model: nn.Module) -> list[Tensor]:
    """Return the weights of a network's linear layers."""
    return [module.weight for module in model.modules() if isinstance(module, nn.Linear)]


def fit(
    model: nn.Module,
    optimizer: SGD,
    step: Callable[[], object],
    data: Data,
    steps: int,
    weights: Sequence[Tensor],
    rates: Parts,
    l1: float,
) -> None:
    """Train with a penalty on the magnitudes of the weights, of which those that are not active are 0."""
    done = 0
    while done < steps:
        for [(images, labels)] in islice(data.train.epoch(), steps - done):
            optimizer.param_groups[0]["lr"] = at(rates, done / steps)
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            (loss + l1 * sum(weight.abs().sum() for weight in weights)).backward()
            step()
            done += 1


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Return test accuracy in percent."""
    assert data.test is not None
    model.eval()
    right = [model(images).argmax(1) == labels for images, labels in data.test.batches()]
    return 100 * torch.cat(right).float().mean().item()


def weights_of_classes(weight: Tensor) -> list[int]:
    """Count the weights of each class in the last layer."""
    return [int(count) for count in (weight != 0).sum(1)]
