"""A method of your own: it drops small weights and grows large gradients, in waves.

    python examples/own_method.py

Nothing is registered: an object is given to `SparseTraining`. Exact counts, ties, ranks, optimizer state and saving are
done for you. docs/adding-a-method.md has the whole contract.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from digits import TRAIN, accuracy, network
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dynsparse import ReallocationReport, SparseTraining
from dynsparse.masks import SparseLayer
from dynsparse.masks.selection import Cut, cuts_fraction
from dynsparse.methods.base import Clock
from dynsparse.methods.dynamic import Dynamic, DynamicSettings


class WavesSettings(DynamicSettings):
    """Options of `Waves`. Its base class brings `period`, `stop_epoch` and `new_weights`."""

    name: Literal["waves"] = "waves"
    fraction: float = 0.3
    """Largest fraction of a layer's active weights to move in one event."""
    waves: int = 3
    """Number of waves in the whole run."""

    def build(self) -> Waves:
        return Waves(self)


class Waves(Dynamic):
    """The fraction that moves rises and falls as a sine does, f = F |sin(pi w p)|, p the progress from 0 to 1."""

    settings: WavesSettings

    def drop_cuts(self, scores: Sequence[Tensor], clock: Clock) -> Sequence[Cut]:
        wave = abs(math.sin(math.pi * self.settings.waves * clock.progress))
        return cuts_fraction(scores, self.settings.fraction * wave)

    def grow_scores(self, layer: SparseLayer) -> Tensor:
        assert layer.weight.grad is not None
        return layer.unit_means(layer.weight.grad.abs())


def tell(report: ReallocationReport) -> None:
    """Print how many weights moved."""
    print(f"step {report.step:3}: {sum(report.grown.values()):3} weights moved")


EPOCHS = 20

torch.manual_seed(0)
loader = DataLoader(TRAIN, batch_size=64, shuffle=True)
model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
method = WavesSettings(period={0: 30}).build()
sparse = SparseTraining(model, optimizer, method, sparsity=0.95, total_steps=EPOCHS * len(loader), on_reallocation=tell)
for _ in range(EPOCHS):
    for images, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

print(sparse)
print(f"test accuracy {accuracy(model):.1f} %")
