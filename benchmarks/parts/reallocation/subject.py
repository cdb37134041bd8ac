"""A network whose reallocation is timed, and the means to put it back as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.full_scans import DenseLayer
from benchmarks.harness.runs import CPU, run_config
from dynsparse.config.schema import RunConfig
from dynsparse.distributed import digest
from dynsparse.masks import MaskSet
from dynsparse.methods import Clock
from dynsparse.reallocation import Plan, Reallocator
from dynsparse.training.network import build_network

CLOCK = Clock(step=1, epoch=0, steps_per_epoch=1000, epochs=100)
SHARE = 0.03
"""Fraction of the active weights, moved where densities and methods are compared."""
OURS = "ours"
METHODS: dict[str, dict[str, Any]] = {
    "static": {},
    "dsr": {},
    "set": {"fraction": SHARE},
    "rigl": {"fraction": SHARE},
    "sparse_momentum": {"fraction": SHARE},
    "deepr": {},
}


class Amount(NamedTuple):
    """The amount that is measured."""

    model: Mapping[str, Any] = {"name": "imagenet_resnet50"}
    classes: int = 1000
    sparsity: float = 0.9
    moves: Sequence[int] = (64_000, 400_000)
    rounds_of_full_scans: int = 3
    rounds: int = 5
    cache: int = 128 << 20
    """Bytes passed over before each call: more than the processor's last cache holds."""


TINY = Amount(model={"name": "small_cnn", "channels": [8, 16]}, classes=10, moves=(8, 40), rounds=2, cache=1 << 10)


class Subject:
    """A network as an optimizer step left it, with all that a reallocation changes, and the means to put it back.

    `moves` active weights lie below dsr's threshold, and as many have the wrong sign for deepr. Weights are the initial
    ones, momenta are those of one step with random gradients.
    """

    def __init__(self, amount: Amount, sparsity: float, method: str = "dsr", moves: int | None = None) -> None:
        config = settings(amount, sparsity, method)
        network = build_network(config, CPU)
        self.model, self.masks = network.model, network.masks
        self.moves = moves or max(1, round(SHARE * self.masks.active_weights))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0, momentum=0.9)
        self.gradients = self._step()
        self.threshold = threshold_above(self.masks, self.moves)
        chosen = config.method
        if method == "dsr":
            chosen = chosen.model_copy(update={"initial_threshold": self.threshold, "target_moves": self.moves})
        self.method = chosen.build()
        self.method.prepare(self.masks)
        if method == "deepr":
            self._flip_signs()
        self.reallocator = Reallocator(self.model, self.masks, self.method, self.optimizer, seed=config.seed)
        self.start = [layer.copy(torch.bool) for layer in self.layers()]
        self._saved_masks, self._saved_method = self.masks.state_dict(), self.method.state_dict()
        self._elsewhere = elsewhere(amount.cache)
        self._at_step = False

    def _step(self) -> list[Tensor]:
        """Make momenta, and leave the weights as they are. Returns the sparse layers' gradients, before masking."""
        generator = torch.Generator().manual_seed(1)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        gradients = [layer.weight.grad.clone() for layer in self.masks if layer.weight.grad is not None]
        self.masks.mask_gradients()
        self.optimizer.step()
        return gradients

    @torch.no_grad()
    def _flip_signs(self) -> None:
        """Flip the signs of `moves` active weights, as evenly spread as can be."""
        marked = torch.zeros(self.masks.active_weights, dtype=torch.bool)
        marked[torch.linspace(0, len(marked) - 1, self.moves, dtype=torch.float64).long()] = True
        for layer, flips in zip(self.masks, marked.split([x.active_weights for x in self.masks]), strict=True):
            values = layer.gather(layer.weight).view(-1)
            layer.scatter_(layer.weight, torch.where(flips, -values, values))

    def layers(self) -> list[DenseLayer]:
        """Layers as they are now: weights and momenta themselves, masks copied."""
        state = self.optimizer.state
        return [DenseLayer(x.weight.detach(), x.mask, state[x.weight]["momentum_buffer"]) for x in self.masks]

    @torch.no_grad()
    def restore(self) -> None:
        """Put all back to after `backward`: gradients are not masked yet."""
        self._at_step = False
        for layer, saved, gradient in zip(self.masks, self.start, self.gradients, strict=True):
            layer.weight.copy_(saved.weight)
            self.optimizer.state[layer.weight]["momentum_buffer"].copy_(saved.momentum)
            assert layer.weight.grad is not None
            layer.weight.grad.copy_(gradient)
        self.masks.load_state_dict(self._saved_masks)
        self.method.load_state_dict(self._saved_method)
        self.empty_cache()

    def restore_to_step(self) -> None:
        """Put all back to where `reallocator(clock)` is called."""
        if not self._at_step:
            self.restore()
            self.seen = self.reallocator.before_step(CLOCK)
            self._at_step = True
        self.empty_cache()

    def empty_cache(self) -> None:
        self._elsewhere += 1

    def reallocate(self) -> int:
        """Reallocate. Returns the weights dropped."""
        self._at_step = False
        return sum(self.reallocator(CLOCK, self.seen).dropped.values())

    def apply(self, plan: Plan) -> None:
        self._at_step = False
        self.reallocator.apply(plan, costs=self.seen.growth_costs)

    def reallocate_with_digests(self) -> None:
        """Reallocate and hash as each of several workers does: masks and weights before, masks after."""
        self.digests(masks=1)
        self.reallocate()
        digest.mask_digest(self.masks)

    def digests(self, masks: int = 2) -> None:
        for _ in range(masks):
            digest.mask_digest(self.masks)
        digest.weight_digest(self.model, self.masks)

    def whole_event(self) -> None:
        """Do all that a step with a reallocation does beside backward and the optimizer."""
        self._at_step = False
        self.reallocator.after_step(CLOCK, self.reallocator.before_step(CLOCK))


@lru_cache(maxsize=1)
def elsewhere(size: int) -> Tensor:
    """Memory that pushes all else out of the cache when it is passed over; its size in bytes."""
    return torch.zeros(size, dtype=torch.uint8)


def settings(amount: Amount, sparsity: float, method: str) -> RunConfig:
    period = {} if method == "static" else {"period": {0: 1}}
    chosen = {"name": method, **METHODS[method], **period}
    return run_config(amount.model, chosen, 32, amount.classes, sparsity={"conv": sparsity, "fc": sparsity})


def threshold_above(masks: MaskSet, count: int) -> float:
    """Return the magnitude below which exactly `count` active weights lie."""
    magnitudes = torch.cat([layer.gather(layer.weight.detach()).abs().view(-1) for layer in masks])
    last, threshold = magnitudes.sort().values[count - 1 : count + 1].tolist()
    assert last < threshold, f"two weights of magnitude {last} stand where {count} are to be below: take another seed"
    return float(threshold)
